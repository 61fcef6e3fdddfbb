//! The few nftables messages that we send and read. The numbers are those of linux/netfilter/nf_tables.h.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::{
    KernelError,
    attribute::{Attributes, attribute, attributes, text},
    netfilter::{self, NetfilterMessage, number},
    netlink::{NetfilterSocket, Step},
};

/// A step of a transaction.
pub(crate) type NetfilterStep = Step<NetfilterMessage>;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
pub(super) const SUBSYSTEM: u8 = 10;

/// A table, by family and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: u8,
    pub(crate) name: &'static str,
}

/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_BRIDGE` and `NFPROTO_IPV6` (linux/netfilter.h).
pub(crate) const INET: u8 = 1;
pub(crate) const IPV4: u8 = 2;
pub(crate) const BRIDGE: u8 = 7;
pub(crate) const IPV6: u8 = 10;

/// What a set's keys, or a map's data, are made of: its number as nft has it, which the kernel keeps for `nft list`
/// (a concatenation's parts take six bits each), and its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Type {
    pub(crate) number: u32,
    pub(crate) length: u32,
}

/// nft's number for the type of a link's name.
pub(super) const LINK_NAME: u32 = 41;

/// A set, or with `data` a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: Type,
    pub(crate) data: Option<Type>,
    pub(crate) is_interval: bool,
}

/// A chain; without `hook` only rules lead there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// Type, hook number and priority.
    pub(crate) hook: Option<(&'static str, u32, i32)>,
}

/// An expression of a rule, or a statement. A register is 1 unless one is given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expression {
    /// Loads what is known about the packet, by `NFT_META_*`.
    Meta {
        key: u32,
        register: u32,
    },
    /// Loads bytes of the link (0), network (1) or transport (2) header.
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    /// Goes on only if it compares so, by `NFT_CMP_*`.
    Compare {
        operator: u32,
        value: &'static [u8],
    },
    /// Keeps what `mask` has, and sets what `or` has.
    Bits {
        mask: u32,
        or: u32,
    },
    /// Makes it the packet's mark.
    SetMark,
    /// Goes on only if it is in the set, or, if `inverted`, is not.
    Lookup {
        set: &'static str,
        inverted: bool,
    },
    /// Goes on only if it is in the map, with the map's data in its place.
    Map {
        map: &'static str,
    },
    /// Goes on only if the destination is an address of this host.
    IsLocal,
    /// Sends the connection to the address, and the port in `port`; packets of another family go on.
    DestinationNat {
        family: u8,
        port: u32,
    },
    /// Gives the connection the address of the link that it leaves by.
    Masquerade,
    Jump {
        chain: &'static str,
    },
    Drop,
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

fn verdict(code: i32) -> Attributes {
    Attributes::new().number(1, code.cast_unsigned())
}

impl Expression {
    fn append_to(self, list: Attributes) -> Attributes {
        let new = Attributes::new;
        // Most have their registers as attributes 1 and 2; their other attributes have no order of their own.
        let (name, data) = match self {
            Self::Meta { key, register } => ("meta", new().number(1, register).number(2, key)),
            Self::Payload { base, offset, length, register } => {
                ("payload", new().number(1, register).number(2, base).number(3, offset).number(4, length))
            }
            Self::Compare { operator, value: bytes } => {
                ("cmp", new().number(1, 1).number(2, operator).nest(3, &value(bytes)))
            }
            Self::Bits { mask, or } => {
                let (mask, xor) = (value(&(mask & !or).to_ne_bytes()), value(&or.to_ne_bytes()));
                ("bitwise", new().number(1, 1).number(2, 1).number(3, 4).nest(4, &mask).nest(5, &xor))
            }
            // NFT_META_MARK is 3, and 3 its source register's attribute, too.
            Self::SetMark => ("meta", new().number(2, 3).number(3, 1)),
            Self::Lookup { set, inverted } => {
                ("lookup", new().text(1, set).number(2, 1).number(5, u32::from(inverted)))
            }
            Self::Map { map } => ("lookup", new().text(1, map).number(2, 1).number(3, 1)),
            Self::IsLocal => return Self::local_destination(list),
            Self::DestinationNat { family, port } => {
                ("nat", new().number(1, 1).number(2, family.into()).number(3, 1).number(5, port))
            }
            Self::Masquerade => ("masq", new()),
            // NFT_JUMP is -3, NF_DROP 0; register 0 is the verdict's.
            Self::Jump { chain } => {
                ("immediate", new().number(1, 0).nest(2, &new().nest(2, &verdict(-3).text(2, chain))))
            }
            Self::Drop => ("immediate", new().number(1, 0).nest(2, &new().nest(2, &verdict(0)))),
        };
        list.nest(1, &new().text(1, name).nest(2, &data))
    }

    /// NFT_FIB_RESULT_ADDRTYPE (3) of the destination (NFTA_FIB_F_DADDR, 2) must be RTN_LOCAL (2).
    fn local_destination(list: Attributes) -> Attributes {
        let data = Attributes::new().number(1, 1).number(2, 3).number(3, 2);
        let list = list.nest(1, &Attributes::new().text(1, "fib").nest(2, &data));
        const LOCAL: [u8; 4] = 2u32.to_ne_bytes();
        Self::Compare { operator: EQUAL, value: &LOCAL }.append_to(list)
    }
}

/// `NFT_CMP_*`.
pub(crate) const EQUAL: u32 = 0;
pub(crate) const NOT_EQUAL: u32 = 1;
pub(crate) const LESS: u32 = 2;

/// `NFT_META_*`.
pub(crate) const MARK: u32 = 3;
pub(crate) const IN_NAME: u32 = 6;
pub(crate) const OUT_NAME: u32 = 7;
pub(crate) const NETWORK_PROTOCOL: u32 = 15;
pub(crate) const TRANSPORT_PROTOCOL: u32 = 16;

/// An element of a set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// Of a set with intervals: the first key after one.
    pub(crate) is_end: bool,
    /// Empty in a set.
    pub(crate) data: Vec<u8>,
    /// Shown by `nft list`; at most [`LONGEST_COMMENT`] bytes.
    pub(crate) comment: String,
}

/// nft's own limit is 128 with the NUL.
pub(crate) const LONGEST_COMMENT: usize = 127;

impl Element {
    fn write(&self) -> Attributes {
        let mut attributes = Attributes::new().nest(1, &value(&self.key));
        if !self.data.is_empty() {
            attributes = attributes.nest(2, &value(&self.data));
        }
        if self.is_end {
            attributes = attributes.number(3, 1);
        }
        if !self.comment.is_empty() {
            // libnftnl's user data: type (0 is the comment), length, the text with its NUL.
            let length = u8::try_from(self.comment.len() + 1).unwrap_or(u8::MAX);
            let mut comment = vec![0, length];
            comment.extend_from_slice(self.comment.as_bytes());
            comment.push(0);
            attributes = attributes.bytes(6, &comment);
        }
        attributes
    }

    fn read(bytes: &[u8]) -> Self {
        let mut element = Self::default();
        let value = |bytes| attribute(bytes, 1).unwrap_or_default().to_vec();
        for (kind, bytes) in attributes(bytes) {
            match kind {
                1 => element.key = value(bytes),
                2 => element.data = value(bytes),
                3 => element.is_end = number(bytes).is_some_and(|flags| flags & 1 != 0),
                6 => element.comment = comment(bytes),
                _ => {}
            }
        }
        element
    }
}

/// The comment among user data, which somebody else may have written.
fn comment(mut data: &[u8]) -> String {
    while let Some((&[kind, length], rest)) = data.split_first_chunk::<2>() {
        let Some((value, rest)) = rest.split_at_checked(length.into()) else { break };
        if kind == 0 {
            return text(value);
        }
        data = rest;
    }
    String::new()
}

impl Table {
    fn message(self, kind: u8, attributes: &Attributes) -> NetfilterMessage {
        netfilter::message(SUBSYSTEM, kind, self.family, attributes)
    }

    fn step(self, doing: String, kind: u8, attributes: &Attributes, flags: u16) -> NetfilterStep {
        Step { doing, message: self.message(kind, attributes), flags }
    }

    fn named(self) -> Attributes {
        Attributes::new().text(1, self.name)
    }

    /// Makes the table unless it is there; one that somebody put to sleep wakes up.
    pub(crate) fn create(self) -> NetfilterStep {
        self.step("create the nftables table".to_owned(), 0, &self.named().number(2, 0), NLM_F_CREATE)
    }

    pub(crate) fn delete(self) -> NetfilterStep {
        self.step("delete the nftables table".to_owned(), 2, &self.named(), 0)
    }

    pub(crate) fn create_chain(self, chain: &Chain) -> NetfilterStep {
        let mut attributes = self.named().text(3, chain.name);
        if let Some((kind, hook, priority)) = chain.hook {
            let hook = Attributes::new().number(1, hook).number(2, priority.cast_unsigned());
            attributes = attributes.nest(4, &hook).text(7, kind);
        }
        self.step(format!("create the nftables chain {}", chain.name), 3, &attributes, NLM_F_CREATE)
    }

    /// Removes all rules of the chain.
    pub(crate) fn flush_chain(self, chain: &str) -> NetfilterStep {
        self.step(format!("empty the nftables chain {chain}"), 8, &self.named().text(2, chain), 0)
    }

    /// Adds a rule at the chain's end.
    pub(crate) fn add_rule(self, chain: &str, expressions: &[Expression]) -> NetfilterStep {
        let list = expressions.iter().fold(Attributes::new(), |list, expression| expression.append_to(list));
        let attributes = self.named().text(2, chain).nest(4, &list);
        self.step(format!("add a rule to the nftables chain {chain}"), 6, &attributes, NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Makes the set unless it is there; `id` is its number within the transaction.
    pub(crate) fn create_set(self, set: &Set, id: u32) -> NetfilterStep {
        // NFT_SET_INTERVAL is 4, NFT_SET_MAP 8.
        let flags = (u32::from(set.is_interval) << 2) | (u32::from(set.data.is_some()) << 3);
        let mut attributes =
            self.named().text(2, set.name).number(3, flags).number(4, set.key.number).number(5, set.key.length);
        if let Some(data) = set.data {
            attributes = attributes.number(6, data.number).number(7, data.length);
        }
        if set.key.number == LINK_NAME {
            // libnftnl's user data: type (0 is the key's byte order), length, value (1 is the host's). nft reads names
            // as numbers of that order, and prints them as empty without.
            attributes = attributes.bytes(13, &[&[0, 4], &1u32.to_ne_bytes()[..]].concat());
        }
        self.step(format!("create the nftables set {}", set.name), 9, &attributes.number(10, id), NLM_F_CREATE)
    }

    fn elements(self, set: &str, elements: &[Element]) -> Attributes {
        let list = elements.iter().fold(Attributes::new(), |list, element| list.nest(1, &element.write()));
        self.named().text(2, set).nest(3, &list)
    }

    /// Adds elements, which may be there already.
    pub(crate) fn add(self, set: &str, elements: &[Element]) -> NetfilterStep {
        let attributes = self.elements(set, elements);
        self.step(format!("add to the nftables set {set}"), 12, &attributes, NLM_F_CREATE)
    }

    /// Adds elements whose keys must not be there yet.
    pub(crate) fn add_new(self, set: &str, elements: &[Element]) -> NetfilterStep {
        NetfilterStep { flags: NLM_F_CREATE | NLM_F_EXCL, ..self.add(set, elements) }
    }

    /// Removes elements, which must be there.
    pub(crate) fn remove(self, set: &str, elements: &[Element]) -> NetfilterStep {
        let attributes = self.elements(set, elements);
        self.step(format!("remove from the nftables set {set}"), 14, &attributes, 0)
    }

    /// What a set holds, unordered; nothing if there is no such set or table.
    pub(crate) fn list(self, socket: &mut NetfilterSocket, set: &str) -> Result<Vec<Element>, KernelError> {
        let message = self.message(13, &self.named().text(2, set));
        let answers = absent_is_none(socket.dump(&format!("list the nftables set {set}"), &message))?;
        Ok(answers.iter().flatten().flat_map(read_elements).collect())
    }

    /// The element of `key`, if set and element are there.
    pub(crate) fn find(
        self,
        socket: &mut NetfilterSocket,
        set: &str,
        key: &[u8],
    ) -> Result<Option<Element>, KernelError> {
        let element = Element { key: key.to_vec(), ..Element::default() };
        let message = self.message(13, &self.elements(set, &[element]));
        let answers = absent_is_none(socket.request(format!("look into the nftables set {set}"), message, 0))?;
        Ok(answers.iter().flatten().flat_map(read_elements).next())
    }

    /// The chain of each rule of the table, in the kernel's order.
    pub(crate) fn chains_of_rules(self, socket: &mut NetfilterSocket) -> Result<Vec<String>, KernelError> {
        let answers = absent_is_none(socket.dump("list the nftables rules", &self.message(7, &self.named())))?;
        let chain = |rule| {
            let (family, attributes) = netfilter::parts(rule, SUBSYSTEM, 6)?;
            // The filter by table came with Linux 4.9.
            let is_ours = family == self.family && attribute(attributes, 1).map(text).as_deref() == Some(self.name);
            if is_ours { attribute(attributes, 2).map(text) } else { None }
        };
        Ok(answers.iter().flatten().filter_map(chain).collect())
    }
}

fn absent_is_none<T>(result: Result<T, KernelError>) -> Result<Option<T>, KernelError> {
    match result {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
        other => other.map(Some),
    }
}

fn read_elements(message: &NetfilterMessage) -> Vec<Element> {
    let list = netfilter::parts(message, SUBSYSTEM, 12).and_then(|(_, found)| attribute(found, 3)).unwrap_or_default();
    attributes(list).map(|(_, element)| Element::read(element)).collect()
}

/// The number that every change of the namespace's rules raises.
pub(crate) fn generation(socket: &mut NetfilterSocket) -> Result<u32, KernelError> {
    let doing = "read the nftables generation";
    let message = netfilter::message(SUBSYSTEM, 16, 0, &Attributes::new());
    let answers = socket.request(doing.to_owned(), message, 0)?;
    let id = answers.iter().find_map(|answer| {
        let (_, attributes) = netfilter::parts(answer, SUBSYSTEM, 15)?;
        attribute(attributes, 1).and_then(number)
    });
    id.ok_or_else(|| KernelError::new(doing, Errno::ENODATA))
}

/// Sends `steps` as one transaction: all are carried out or none.
pub(crate) fn commit(socket: &mut NetfilterSocket, steps: Vec<NetfilterStep>) -> Result<(), KernelError> {
    transaction(socket, &Attributes::new(), steps)
}

/// How often a transaction is tried against changes by others.
const ATTEMPTS: usize = 100;

/// Commits what `plan` makes of what it reads, and plans anew if anybody changed any rule of the namespace meanwhile.
/// No steps are no transaction.
///
/// That takes no lock, and leaves the old state or the new one, whatever kills us.
pub(crate) fn update(
    socket: &mut NetfilterSocket,
    plan: &mut dyn FnMut(&mut NetfilterSocket) -> Result<Vec<NetfilterStep>, KernelError>,
) -> Result<(), KernelError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let generation = generation(socket)?;
        let steps = plan(socket)?;
        if steps.is_empty() {
            return Ok(());
        }
        // linux/netfilter/nfnetlink.h: NFNL_BATCH_GENID is 1.
        match transaction(socket, &Attributes::new().number(1, generation), steps) {
            // ERESTART, which nix has no name for: the rules changed since the generation was read.
            Err(error) if error.source.raw_os_error() == Some(libc::ERESTART) => last = Some(error),
            other => return other,
        }
    }
    Err(last.unwrap_or_else(|| KernelError::new("change the nftables table", Errno::EAGAIN)))
}

fn transaction(
    socket: &mut NetfilterSocket,
    condition: &Attributes,
    steps: Vec<NetfilterStep>,
) -> Result<(), KernelError> {
    // NFNL_MSG_BATCH_BEGIN is 16, NFNL_MSG_BATCH_END 17.
    let begin = netfilter::control(16, SUBSYSTEM, condition);
    let end = netfilter::control(17, SUBSYSTEM, &Attributes::new());
    socket.transaction(begin, steps, end)
}
