//! Real traffic between namespaces.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use keelson_testkit::Netns;

use super::{Node, ip};

/// Connects from `client` to `address` in `server`, and gives the address that the server saw.
#[track_caller]
pub(crate) fn talk(client: &Netns, server: &Netns, address: IpAddr) -> IpAddr {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        let accepted = scope.spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            peer.ip()
        });
        let mut text = String::new();
        let mut stream = client.run(|| TcpStream::connect(SocketAddr::new(address, port)).unwrap());
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        accepted.join().unwrap()
    })
}

/// A namespace outside, tied to the host's, that knows no way back to the Pods.
pub(crate) fn world(node: &Node) -> Netns {
    let world = Netns::new().unwrap();
    ip(&node.host, &["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    // `ip link set netns` takes a name below /run/netns or a process: give it a process that lives there.
    let mut holder = world.command("sleep").arg("1000").spawn().unwrap();
    ip(&node.host, &["link", "set", "up1", "netns", &holder.id().to_string()]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    for (namespace, link, four, six) in
        [(&node.host, "up0", "192.0.2.1/24", "2001:db8::1/64"), (&world, "up1", "192.0.2.2/24", "2001:db8::2/64")]
    {
        ip(namespace, &["addr", "add", four, "dev", link]);
        ip(namespace, &["addr", "add", six, "dev", link, "nodad"]);
        ip(namespace, &["link", "set", link, "up"]);
    }
    world
}
