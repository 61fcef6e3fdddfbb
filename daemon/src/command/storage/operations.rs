//! What the driver that runs on this node is at: asked from its `/operations`.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use keelson_csi::{Operation, operator::Running};
use serde::Deserialize;

use crate::{config::NodeConfig, plugins::PluginKind};

/// How long the driver may take to connect, and for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// More than any answer has: each of 256 calls is one line.
const LONGEST_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    operations: Vec<Operation>,
}

/// Asks the driver of the node's config.
pub(super) fn ask(config: &NodeConfig) -> Running {
    let mut address = config.plugin_address(PluginKind::Storage);
    if address.port() == 0 {
        return Err("the config has the driver take any free port, so it can't be asked".to_owned());
    }
    // It listens on all addresses, of which one is surely this machine's.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let text = get(address).map_err(|error| format!("no driver answers on {address}: {error}"))?;
    parse(&text).map_err(|wrong| format!("what answers on {address} is not the driver: {wrong}"))
}

fn get(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /operations HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut text)?;
    Ok(text)
}

fn parse(text: &[u8]) -> Result<Vec<Operation>, String> {
    const END: &[u8] = b"\r\n\r\n";
    let end = text.windows(END.len()).position(|part| part == END).ok_or("the answer has no end of its head")?;
    let (head, body) = (&text[..end], &text[end + END.len()..]);
    let status = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if !status.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("it says {:?}", String::from_utf8_lossy(status)));
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok(answer.operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_from_a_driver() {
        let body = r#"{"operations":[{"subject":"v1-1","operation":"NodeStageVolume","seconds":3,"request":7,"client":null,"awaited":true}]}"#;
        let found =
            parse(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{body}").as_bytes()).unwrap();
        assert_eq!((found.len(), found[0].seconds, found[0].client), (1, 3, None));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\n{\"operations\":[]}").unwrap(), []);
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n[]",
            "HTTP/1.1 200 OK\r\n\r\n{\"operations\":[{}]}",
            "HTTP/1.1 200 OK\r\n\r\n{\"operations\":[]",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            parse(text.as_bytes()).unwrap_err();
        }
    }
}
