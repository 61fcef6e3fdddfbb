//! The few nftables messages that we send, built from the crate's attributes.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, GenAttribute, GenMessage,
        Hook, HookNumber, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload,
        Register, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementFlags, SetElementList,
        SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
    },
    none::ControlMessage,
};
use nix::errno::Errno;

use super::{
    KernelError,
    netlink::{NetfilterSocket, Step},
};

/// One end of an interval: its first address, or the first address after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boundary {
    pub(crate) address: IpAddr,
    pub(crate) is_end: bool,
}

/// A step of a transaction on one table of family inet.
pub(crate) fn step(doing: impl Into<String>, message: NfTablesMessage) -> Step<NetfilterMessage> {
    Step { doing: doing.into(), message: inet(message), flags: NLM_F_CREATE }
}

/// Sends `steps` as one transaction that fails with `ERESTART` if any rule of the namespace changed since
/// `generation` was read.
pub(crate) fn commit(
    socket: &mut NetfilterSocket,
    generation: u32,
    steps: Vec<Step<NetfilterMessage>>,
) -> Result<(), KernelError> {
    // linux/netfilter/nfnetlink.h: NFNL_MSG_BATCH_BEGIN is 16, its attribute NFNL_BATCH_GENID 1, and the header's
    // res_id names the subsystem, nftables being 10.
    let header = || NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 10);
    let genid = DefaultNla::new(1, generation.to_be_bytes().to_vec());
    let begin = ControlMessage::Other { message_type: 16, attributes: vec![genid] };
    socket.transaction(
        NetfilterMessage::new(header(), begin),
        steps,
        NetfilterMessage::new(header(), ControlMessage::BatchEnd),
    )
}

/// The number that every change of the namespace's rules raises.
pub(crate) fn generation(socket: &mut NetfilterSocket) -> Result<u32, KernelError> {
    let doing = "read the nftables generation".to_owned();
    let message = inet(NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }));
    for answer in socket.request(doing.clone(), message, 0)? {
        if let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(message)) = answer.inner {
            for attribute in message.attributes {
                if let GenAttribute::Id(id) = attribute {
                    return Ok(id);
                }
            }
        }
    }
    Err(KernelError::new(doing, Errno::ENODATA))
}

fn inet(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

pub(crate) fn new_table(name: &str) -> NfTablesMessage {
    NfTablesMessage::NewTable(table(name))
}

pub(crate) fn delete_table(name: &str) -> NfTablesMessage {
    NfTablesMessage::DeleteTable(table(name))
}

/// A set of address intervals.
pub(crate) fn new_set(table: &str, name: &str, id: u32, is_ipv4: bool) -> NfTablesMessage {
    // The type numbers are nft's own (ipv4_addr is 7, ipv6_addr 8): the kernel keeps them for `nft list`.
    let (kind, length) = if is_ipv4 { (7, 4) } else { (8, 16) };
    NfTablesMessage::NewSet(SetMessage {
        attributes: vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(name.to_owned()),
            SetAttribute::Flags(SetFlags::Interval),
            SetAttribute::KeyType(kind),
            SetAttribute::KeyLen(length),
            SetAttribute::Id(id),
        ],
    })
}

fn elements(table: &str, set: &str, boundaries: &[Boundary]) -> SetElementMessage {
    let list = boundaries.iter().map(|boundary| {
        let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(octets(boundary.address)))];
        if boundary.is_end {
            attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
        }
        ListAttribute::Element(attributes)
    });
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(list.collect()),
        ],
    }
}

pub(crate) fn new_elements(table: &str, set: &str, boundaries: &[Boundary]) -> NfTablesMessage {
    NfTablesMessage::NewSetElement(elements(table, set, boundaries))
}

/// What the set holds, unordered; nothing if there is no such set or table.
pub(crate) fn boundaries(socket: &mut NetfilterSocket, table: &str, set: &str) -> Result<Vec<Boundary>, KernelError> {
    let message = SetElementMessage {
        attributes: vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())],
    };
    let doing = format!("list the nftables set {set}");
    let answers = match socket.dump(&doing, &inet(NfTablesMessage::GetSetElement(message))) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for answer in answers {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = answer.inner else { continue };
        for attribute in message.attributes {
            let SetElementList::Elements(list) = attribute else { continue };
            found.extend(list.into_iter().filter_map(|element| match element {
                ListAttribute::Element(attributes) => boundary(&attributes),
                _ => None,
            }));
        }
    }
    Ok(found)
}

fn boundary(attributes: &[SetElementAttribute]) -> Option<Boundary> {
    let mut address = None;
    let mut is_end = false;
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(bytes)) => {
                let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
                address = four.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok();
            }
            SetElementAttribute::Flags(flags) => is_end = flags.contains(SetElementFlags::IntervalEnd),
            _ => {}
        }
    }
    Some(Boundary { address: address?, is_end })
}

/// A chain of type nat in the postrouting hook.
pub(crate) fn new_source_nat_chain(table: &str, name: &str, priority: i32) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(InetHookNumber::PostRouting)),
                Hook::Priority(priority.cast_unsigned()),
            ]),
            ChainAttribute::Type("nat".to_owned()),
        ],
    })
}

/// A rule at the end of a chain.
pub(crate) fn new_rule(table: &str, chain: &str, expressions: Vec<Vec<ExpressionAttribute>>) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(ListAttribute::Element).collect()),
        ],
    })
}

/// The sets whose members' packets the chain's rules masquerade; none if there is no such chain or table.
pub(crate) fn masqueraded_sets(
    socket: &mut NetfilterSocket,
    table: &str,
    chain: &str,
) -> Result<Vec<String>, KernelError> {
    let attributes = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    let doing = format!("list the nftables chain {chain}");
    let answers = match socket.dump(&doing, &inet(NfTablesMessage::GetRule(RuleMessage { attributes }))) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let mut sets = Vec::new();
    for answer in answers {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = answer.inner else { continue };
        for attribute in rule.attributes {
            if let RuleAttribute::Expressions(expressions) = attribute {
                sets.extend(masqueraded_set(&expressions));
            }
        }
    }
    Ok(sets)
}

/// The first set that a masquerading rule looks into: by our [`look_up`]s, that of the packet's source.
fn masqueraded_set(expressions: &[ListAttribute<ExpressionAttribute>]) -> Option<String> {
    let mut set = None;
    let mut masquerades = false;
    for expression in expressions {
        let ListAttribute::Element(attributes) = expression else { continue };
        for attribute in attributes {
            match attribute {
                ExpressionAttribute::Name(name) => masquerades |= name == "masq",
                ExpressionAttribute::Data(Expressions::Lookup(lookups)) => {
                    set = set.or_else(|| {
                        lookups.iter().find_map(|lookup| match lookup {
                            Lookup::Set(name) => Some(name.clone()),
                            _ => None,
                        })
                    });
                }
                _ => {}
            }
        }
    }
    set.filter(|_| masquerades)
}

fn expression(name: &str, data: Expressions) -> Vec<ExpressionAttribute> {
    vec![ExpressionAttribute::Name(name.to_owned()), ExpressionAttribute::Data(data)]
}

/// `meta nfproto`, into register 1.
pub(crate) fn load_family() -> Vec<ExpressionAttribute> {
    expression("meta", Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(MetaKey::Nfproto)]))
}

/// `length` bytes of the network header from `offset`, into register 1.
pub(crate) fn load_network_header(offset: u32, length: u32) -> Vec<ExpressionAttribute> {
    // linux/netfilter/nf_tables.h: NFT_PAYLOAD_NETWORK_HEADER is 1.
    let data = vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(1),
        Payload::Offset(offset),
        Payload::Len(length),
    ];
    expression("payload", Expressions::Payload(data))
}

/// Goes on only if register 1 compares so with `value`.
pub(crate) fn compare(operator: Operator, value: &[u8]) -> Vec<ExpressionAttribute> {
    let data =
        vec![Cmp::SourceRegister(Register::Reg1), Cmp::Op(operator), Cmp::Data(DataAttribute::Value(value.to_vec()))];
    expression("cmp", Expressions::Cmp(data))
}

/// Goes on only if register 1 is in the set, or, if `inverted`, is not.
pub(crate) fn look_up(set: &str, id: u32, inverted: bool) -> Vec<ExpressionAttribute> {
    // linux/netfilter/nf_tables.h: NFT_LOOKUP_F_INV is 1.
    let data = vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::SetId(id),
        Lookup::Flags(u32::from(inverted)),
    ];
    expression("lookup", Expressions::Lookup(data))
}

/// Gives the packet the address of the interface that it leaves by.
pub(crate) fn masquerade() -> Vec<ExpressionAttribute> {
    vec![ExpressionAttribute::Name("masq".to_owned())]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
