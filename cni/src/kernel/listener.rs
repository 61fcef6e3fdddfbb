//! Who on the host listens on a port.

use std::{fs, net::IpAddr, path::Path};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket, sockopt,
    },
};

use crate::config::ports::Protocol;

/// The process that listens on `port` of `address` (or of all addresses), if any does.
///
/// Trying costs little. Only if it fails is looked for who is there: an outgoing connection may have the number, too,
/// and that is no listener.
pub(crate) fn find(protocol: Protocol, address: IpAddr, port: u16) -> Option<String> {
    match try_bind(protocol, address, port) {
        Err(Errno::EADDRINUSE) => {}
        // An address that the node doesn't have (yet) has no listener either; neither has a protocol.
        _ => return None,
    }
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Sctp => return Some("a process of the host".to_owned()),
    };
    let inode = tables
        .iter()
        .find_map(|table| fs::read_to_string(table).ok()?.lines().find_map(|line| listener_inode(line, port)))?;
    Some(process_with(&inode).unwrap_or_else(|| "a process of the host".to_owned()))
}

fn try_bind(protocol: Protocol, address: IpAddr, port: u16) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if protocol == Protocol::Udp { SockType::Datagram } else { SockType::Stream };
    let sctp = (protocol == Protocol::Sctp).then_some(nix::sys::socket::SockProtocol::Sctp);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, sctp)?;
    if protocol != Protocol::Udp {
        // Connections that were closed lately hold nothing then.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    let place: Box<dyn SockaddrLike> = match address {
        IpAddr::V4(address) => Box::new(SockaddrIn::from(std::net::SocketAddrV4::new(address, port))),
        IpAddr::V6(address) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            Box::new(SockaddrIn6::from(std::net::SocketAddrV6::new(address, port, 0, 0)))
        }
    };
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), place.as_ref())
}

/// The socket's inode if `line` of one of /proc/net's tables is about a socket that takes what comes to `port`:
/// a listening one (state 0A), or for UDP one without a peer (state 07).
fn listener_inode(line: &str, port: u16) -> Option<String> {
    // Sample: 0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 67226 1 ...
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, found) = columns.get(1)?.rsplit_once(':')?;
    let listens = matches!(*columns.get(3)?, "0A" | "07") && columns.get(2)?.ends_with(":0000");
    (listens && u16::from_str_radix(found, 16) == Ok(port)).then(|| columns.get(9).copied().unwrap_or("0").to_owned())
}

/// Number and name of a process that has the socket.
fn process_with(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let has_socket = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).ok()?;
        files
            .flatten()
            .find(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
    };
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if has_socket(&process.path()).is_some() {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("the process {id} ({})", name.trim_end()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let line = |local: &str, remote: &str, state: &str| {
            format!("  7: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 67226 1 0 100")
        };
        let any = "00000000:0000";
        assert_eq!(listener_inode(&line("00000000:1F90", any, "0A"), 8080).as_deref(), Some("67226"));
        assert_eq!(listener_inode(&line("00000000:1F90", any, "07"), 8080).as_deref(), Some("67226"));
        assert_eq!(listener_inode(&line("00000000:1F90", any, "0A"), 8081), None);
        assert_eq!(listener_inode(&line("0100007F:1F90", "0100007F:0016", "01"), 8080), None);
        assert_eq!(listener_inode(&line("0100007F:1F90", "0100007F:0035", "07"), 8080), None);
        assert_eq!(listener_inode("  sl  local_address rem_address   st", 8080), None);
    }

    #[test]
    fn a_listening_process_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = find(Protocol::Tcp, IpAddr::from([0, 0, 0, 0]), port).unwrap();
        assert!(found.starts_with(&format!("the process {} (", std::process::id())), "{found}");
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(find(Protocol::Tcp, IpAddr::from([127, 0, 0, 1]), client.local_addr().unwrap().port()), None);
    }
}
