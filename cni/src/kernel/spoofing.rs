//! The check of what a container sends: frames with another Ethernet address than its own are dropped.
//!
//! The rule is constant ([`super::rules`]); here are its elements. They are named by the link on the host, so they can
//! be found and removed by that alone.

use nix::errno::Errno;

use super::{
    KernelError,
    netlink::NetfilterSocket,
    nftables::{self, Element},
    rules::{ALLOWED, CHECKED, SPOOFING, link_key},
};

fn elements(link: &str, mac: &[u8]) -> (Element, Element) {
    let checked = Element { key: link_key(link), ..Element::default() };
    let mut allowed = checked.clone();
    allowed.key.extend_from_slice(mac);
    allowed.key.resize(24, 0);
    (checked, allowed)
}

/// Lets `link` take frames from `mac` alone.
pub(crate) fn check(socket: &mut NetfilterSocket, link: &str, mac: &[u8]) -> Result<(), KernelError> {
    let (checked, allowed) = elements(link, mac);
    let (checked, allowed) = ([checked], [allowed]);
    let add = || vec![SPOOFING.table.add(ALLOWED, &allowed), SPOOFING.table.add(CHECKED, &checked)];
    match nftables::commit(socket, add()) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => {
            nftables::commit(socket, SPOOFING.build().into_iter().chain(add()).collect())
        }
        other => other,
    }
}

/// Ends the check of `link` for `mac`; what is gone is no error.
pub(crate) fn release(socket: &mut NetfilterSocket, link: &str, mac: &[u8]) -> Result<(), KernelError> {
    let (checked, allowed) = elements(link, mac);
    nftables::update(socket, &mut |socket| {
        let mut steps = Vec::new();
        for (set, key) in [(CHECKED, &checked.key), (ALLOWED, &allowed.key)] {
            let found = SPOOFING.table.find(socket, set, key)?;
            steps.extend(found.map(|found| SPOOFING.table.remove(set, &[found])));
        }
        Ok(steps)
    })
}

/// Ends the check of `link`, for whatever address; it looks at those of all links.
pub(crate) fn release_all(socket: &mut NetfilterSocket, link: &str) -> Result<(), KernelError> {
    let key = link_key(link);
    nftables::update(socket, &mut |socket| {
        let mut steps = Vec::new();
        for set in [CHECKED, ALLOWED] {
            let mut found = SPOOFING.table.list(socket, set)?;
            found.retain(|element| element.key.starts_with(&key));
            if !found.is_empty() {
                steps.push(SPOOFING.table.remove(set, &found));
            }
        }
        Ok(steps)
    })
}

/// What of the check is not there, as parts of sentences.
pub(crate) fn differences(socket: &mut NetfilterSocket, link: &str, mac: &[u8]) -> Result<Vec<String>, KernelError> {
    let (checked, allowed) = elements(link, mac);
    let is_complete = SPOOFING.incomplete_chains(socket)?.is_empty()
        && SPOOFING.table.find(socket, CHECKED, &checked.key)?.is_some()
        && SPOOFING.table.find(socket, ALLOWED, &allowed.key)?.is_some();
    let difference = || format!("the nftables table bridge {} does not check {link}", SPOOFING.table.name);
    Ok((!is_complete).then(difference).into_iter().collect())
}

/// Removes the table if no link is checked.
pub(crate) fn remove_if_unused(socket: &mut NetfilterSocket) -> Result<(), KernelError> {
    nftables::update(socket, &mut |socket| {
        let is_unused = SPOOFING.table.list(socket, CHECKED)?.is_empty();
        Ok(if is_unused { vec![SPOOFING.table.create(), SPOOFING.table.delete()] } else { Vec::new() })
    })
}
