//! systemd's `.link` files, as far as they decide about the Ethernet addresses of our links.

/// The file among `files`, pairs of name and text, that makes udev give a link called `name` of kind `kind` an Ethernet
/// address of its own choice; `None` if none does.
///
/// systemd.link(5): the files are taken in the order of their names, wherever they lie, and the first that matches
/// decides alone.
pub(crate) fn that_changes_addresses<'a>(files: &'a [(String, String)], name: &str, kind: &str) -> Option<&'a str> {
    let mut sorted: Vec<&(String, String)> = files.iter().collect();
    sorted.sort_by_key(|(path, _)| path.rsplit('/').next().unwrap_or_default().to_owned());
    let (path, text) = sorted.into_iter().find(|(_, text)| matches(text, name, kind))?;
    let persistent = keys(text, "Link").any(|(key, value)| key == "MACAddressPolicy" && value == "persistent");
    persistent.then_some(path.as_str())
}

/// Whether the file is about the link: every key of its section "Match" has to say so. One that we can't judge doesn't.
fn matches(text: &str, name: &str, kind: &str) -> bool {
    let mut any = false;
    for (key, value) in keys(text, "Match") {
        let words = || value.split_whitespace();
        let fits = match key {
            "OriginalName" => words().any(|pattern| fits_pattern(pattern, name)),
            "Kind" | "Driver" => words().any(|pattern| fits_pattern(pattern, kind)),
            _ => false,
        };
        if !fits {
            return false;
        }
        any = true;
    }
    any
}

/// Shell patterns with a star at the end, which is what such files have.
fn fits_pattern(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

fn keys<'a>(text: &'a str, section: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut current = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            current = name;
        }
        let (key, value) = line.split_once('=').filter(|_| current == section && !line.starts_with(['#', ';']))?;
        Some((key.trim(), value.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str =
        "# systemd\n[Match]\nOriginalName=*\n\n[Link]\nNamePolicy=keep kernel\nMACAddressPolicy=persistent\n";

    fn file(path: &str, text: &str) -> (String, String) {
        (path.to_owned(), text.to_owned())
    }

    #[test]
    fn the_first_file_that_matches_decides() {
        let default = file("/usr/lib/systemd/network/99-default.link", DEFAULT);
        let ours = file(
            "/etc/systemd/network/10-keelson.link",
            "[Match]\nOriginalName=kl* ks*\n[Link]\nMACAddressPolicy=none\n",
        );
        let found = |files: &[(String, String)], name| that_changes_addresses(files, name, "veth").map(str::to_owned);
        assert_eq!(found(std::slice::from_ref(&default), "kl0"), Some(default.0.clone()));
        assert_eq!(found(&[default.clone(), ours.clone()], "kl0"), None);
        assert_eq!(found(&[default.clone(), ours], "veth1"), Some(default.0.clone()));
        let by_driver = file("/etc/systemd/network/20.link", "[Match]\nDriver=veth\n[Link]\nMACAddressPolicy=none\n");
        assert_eq!(found(&[default.clone(), by_driver], "kl0"), None);
        // What can't be judged, or says nothing, is passed over.
        let other = file("/etc/systemd/network/30.link", "[Match]\nPath=pci-*\n[Link]\nMACAddressPolicy=none\n");
        assert_eq!(found(&[default.clone(), other], "kl0"), Some(default.0));
        assert_eq!(found(&[file("1.link", ""), file("2.link", "[Link]\nMACAddressPolicy=persistent")], "kl0"), None);
    }
}
