//! What each error code means to whoever is on call: the table behind `keelson network explain`, and the words that
//! docs/network.md has for it. Which failure gets which code is decided in [`crate::error`].

use serde::Serialize;

/// An error code of the plugin's, explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorCode {
    /// The number, `code` in the error that a runtime logs.
    pub code: u32,
    /// What it means.
    pub meaning: &'static str,
    /// When it comes.
    pub when: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// Every code that the plugin answers with, and those that the spec has beside them, in order.
pub const ERROR_CODES: &[ErrorCode] = &[
    ErrorCode {
        code: 1,
        meaning: "the spec version is not supported",
        when: "the config's cniVersion is one that the plugin doesn't speak, or one without the verb that was asked for",
        remedy: "write a cniVersion that the error's details list; GC and STATUS need 1.1.0",
    },
    ErrorCode {
        code: 2,
        meaning: "a key or value of the network config is not supported",
        when: "the config asks for something that would change what is built and that the plugin can't do; the message names key and value",
        remedy: "remove the key, or take the value that the details suggest",
    },
    ErrorCode {
        code: 3,
        meaning: "the container is unknown",
        when: "the spec keeps it for plugins that ask a daemon; this plugin never answers with it",
        remedy: "if you see it, another plugin of the chain gave it: look at that one's log",
    },
    ErrorCode {
        code: 4,
        meaning: "an environment variable is missing or bad",
        when: "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS or CNI_ARGS doesn't hold what it must, or the path in CNI_NETNS is no network namespace",
        remedy: "a matter of the container runtime: look at its log, and whether the Pod's sandbox died while it was set up",
    },
    ErrorCode {
        code: 5,
        meaning: "reading or writing a file failed",
        when: "the store can't be read or written (a full or read-only disk), or the config on stdin ended early",
        remedy: "look at the path in the message, and at its filesystem: df -h, df -i; keelson network doctor",
    },
    ErrorCode {
        code: 6,
        meaning: "the network config can't be decoded",
        when: "it is not JSON",
        remedy: "mend the file in /etc/cni/net.d; keelson writes its own anew",
    },
    ErrorCode {
        code: 7,
        meaning: "the network config is wrong",
        when: "a key has a value that can't work; the message names both, the details say what would be right",
        remedy: "mend the config; for the network that keelson installs: keelson config check",
    },
    ErrorCode {
        code: 8,
        meaning: "CNI_NETNS is the host's own network namespace",
        when: "the runtime asked to attach the host itself; nothing was done",
        remedy: "a matter of the container runtime: a Pod with hostNetwork must not be attached",
    },
    ErrorCode {
        code: 11,
        meaning: "try again later",
        when: "the range is full, the address that was asked for is in use, or another call has held a lock for 30 seconds",
        remedy: "keelson network ls shows who has the addresses; keelson network gc frees what nobody uses; delete Pods or widen the range; fuser <lock file> tells who holds a lock",
    },
    ErrorCode {
        code: 50,
        meaning: "the network can't serve ADD",
        when: "STATUS: the store can't be written, or the config can't work",
        remedy: "the message says why; keelson network doctor",
    },
    ErrorCode {
        code: 51,
        meaning: "the network can't serve ADD, and Pods that run may have no network",
        when: "STATUS: there are records of Pods, and their bridge is gone",
        remedy: "keelson network doctor tells which Pods; delete them, their controllers make them anew",
    },
    ErrorCode {
        code: 100,
        meaning: "the kernel refused an operation",
        when: "the message names the operation, the errno and the kernel's own explanation",
        remedy: "ENODEV, EOPNOTSUPP: the kernel lacks a module (veth, bridge, nf_tables, nft_masq, sch_tbf, ifb); EPERM: the plugin doesn't run as root; else keelson network doctor",
    },
    ErrorCode {
        code: 101,
        meaning: "the host port is taken",
        when: "another Pod, or a process of the node, has the port; the message names it",
        remedy: "keelson network ls --wide shows the Pods' host ports, ss -lntup those of processes; choose another hostPort, or delete the other Pod",
    },
    ErrorCode {
        code: 102,
        meaning: "the bridge can't be used",
        when: "its name belongs to a link of another kind, or it has an address of another network",
        remedy: "the message has the command; or name another bridge, or set forceAddress",
    },
    ErrorCode {
        code: 103,
        meaning: "the container has an interface of that name already",
        when: "ADD for an interface name that another network, or an earlier plugin of the chain, made",
        remedy: "give each network of a Pod an interface name of its own",
    },
    ErrorCode {
        code: 104,
        meaning: "ADD was repeated, and the attachment is not as it was made",
        when: "the runtime asked twice, and in between somebody changed the links, addresses or routes; the details list what",
        remedy: "delete the Pod: the runtime calls DEL, and then ADD for the new one",
    },
    ErrorCode {
        code: 105,
        meaning: "CHECK found differences",
        when: "the kernel has something else than the record says; the details list each difference",
        remedy: "keelson network show <pod> has the remedy for each",
    },
    ErrorCode {
        code: 106,
        meaning: "a record can't be read",
        when: "the file is damaged, or another release wrote it in a format that this one doesn't know; the message names it",
        remedy: "delete its Pod, as DEL removes a damaged record, or keelson network gc --force <container id>; for another release's: install that release again",
    },
    ErrorCode {
        code: 107,
        meaning: "the plugin that addresses are asked from could not be used",
        when: "ipam.type names another plugin, and its executable is missing, can't be executed or doesn't answer as the spec says",
        remedy: "the message names the plugin and where it was looked for: install it in the runtime's CNI directory (/opt/cni/bin)",
    },
    ErrorCode {
        code: 199,
        meaning: "a bug in keelson-cni",
        when: "the program panicked; the message has the place",
        remedy: "report it with the message",
    },
];

/// What `code` means; `None` for a number that is no code of the plugin's.
#[must_use]
pub fn explain(code: u32) -> Option<&'static ErrorCode> {
    ERROR_CODES.iter().find(|known| known.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers in the first column of the table below `heading`.
    fn codes_of_table(text: &str, heading: &str) -> Vec<u32> {
        let section = text.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
        let first_cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
        first_cells.flat_map(|cell| cell.split(',')).filter_map(|code| code.trim().parse().ok()).collect()
    }

    #[test]
    fn the_users_guide_has_the_same_codes() {
        let guide = codes_of_table(include_str!("../../docs/network.md"), "## Error codes");
        let known: Vec<u32> = ERROR_CODES.iter().map(|known| known.code).collect();
        assert_eq!(guide, known);
    }

    #[test]
    fn every_code_that_a_failure_gets_is_explained() {
        let source = include_str!("error.rs");
        let map = source.split("fn code(&self)").nth(1).unwrap().split("fn details").next().unwrap();
        let given: Vec<u32> =
            map.split("=> ").filter_map(|arm| arm.split([',', ' ', '\n']).next()?.parse().ok()).collect();
        assert!(given.len() > 10, "{given:?}");
        for code in given {
            assert!(explain(code).is_some(), "{code}");
        }
        assert!(explain(199).is_some() && explain(9999).is_none());
    }

    #[test]
    fn each_code_stands_once_and_in_order() {
        assert!(ERROR_CODES.is_sorted_by(|one, next| one.code < next.code));
    }
}
