//! The policy's decisions on generated machines: examples first, then the invariants under random histories.

use std::collections::{BTreeMap, BTreeSet};

use keelson_host::{CpuSet, Topology, fixture::Spec};
use proptest::{prelude::*, sample::Index};

use super::*;

const GIB: u64 = 1 << 30;

fn topology(spec: &str) -> Topology {
    spec.parse::<Spec>().unwrap().topology()
}

fn set(list: &str) -> CpuSet {
    list.parse().unwrap()
}

fn pinning(spec: &str, reserved: &str) -> Pinning {
    let mut pinning = Pinning::default();
    let machine = Machine::new(&topology(spec), &set(reserved));
    assert!(pinning.synchronize(machine, vec![], &BTreeMap::new(), false).containers.is_empty());
    pinning
}

fn container(id: &str, qos: impl Into<Option<Qos>>, whole_cpus: Option<u32>) -> Container {
    Container {
        id: id.to_owned(),
        pod: Pod { sandbox: format!("pod-of-{id}"), ..Pod::default() },
        name: "main".to_owned(),
        qos: qos.into(),
        whole_cpus,
        memory_limit_bytes: Some(GIB),
        device_nodes: BTreeSet::new(),
        wishes: Wishes::default(),
        cpus: CpuSet::new(),
        mems: CpuSet::new(),
    }
}

fn guaranteed(id: &str, cpus: u32) -> Container {
    container(id, Qos::Guaranteed, Some(cpus))
}

fn best_effort(id: &str) -> Container {
    container(id, Qos::BestEffort, None)
}

/// The cpuset that an outcome gives, as `cpus/mems`.
fn given(outcome: &Outcome) -> String {
    format!("{}/{}", outcome.assignment.cpus, outcome.assignment.mems)
}

fn moved(moves: &Moves) -> String {
    format!("{} to {}", moves.containers.join(" "), moves.cpus)
}

#[test]
fn on_two_cpus_one_is_exclusive_and_one_is_shared() {
    let mut pinning = pinning("cores=2", "");
    let app = pinning.create(guaranteed("app", 1));
    assert_eq!(given(&app), "0/0");
    let peer = pinning.create(best_effort("peer"));
    assert_eq!(given(&peer), "1/");
    // The last CPU that others can run on is nobody's own.
    let greedy = pinning.create(guaranteed("greedy", 1));
    assert_eq!(given(&greedy), "1/");
    assert_eq!(
        greedy.placement.reasons,
        ["1 exclusive CPUs would leave none for containers that share: 1 of 2 CPUs are left, none is reserved"]
    );
    assert_eq!(moved(&pinning.stop("app")), "greedy peer to 0-1");
}

#[test]
fn who_shares_makes_room_with_the_same_reply() {
    let mut pinning = pinning("cores=4", "");
    assert_eq!(given(&pinning.create(best_effort("one"))), "0-3/");
    assert_eq!(given(&pinning.create(container("two", Qos::Burstable, None))), "0-3/");
    let app = pinning.create(guaranteed("app", 2));
    assert_eq!(given(&app), "0-1/0");
    assert_eq!(moved(&app.moves), "one two to 2-3");
    // A container that is removed without a stop gives back as well; it is told with the next answer that can.
    pinning.forget("app");
    let other = pinning.create(best_effort("three"));
    assert_eq!(given(&other), "0-3/");
    assert_eq!(moved(&other.moves), "one two to 0-3");
}

#[test]
fn reserved_cpus_are_a_last_resort_and_never_exclusive() {
    let mut pinning = pinning("cores=4", "0");
    assert_eq!(given(&pinning.create(best_effort("one"))), "1-3/");
    let app = pinning.create(guaranteed("app", 3));
    assert_eq!(given(&app), "1-3/0");
    assert_eq!(moved(&app.moves), "one to 0");
    let late = pinning.create(guaranteed("late", 1));
    assert_eq!(given(&late), "0/");
    assert_eq!(
        late.placement.reasons,
        ["it wants 1 exclusive CPUs and 0 are free: of 4 online ones 3 are exclusive, 1 are reserved, \
          and 0 are in cpusets of somebody else's"]
    );
}

#[test]
fn who_does_not_get_exclusive_cpus_is_told_why() {
    let mut pinning = pinning("cores=4", "");
    let check = |pinning: &mut Pinning, container: Container, reason: &str| {
        assert_eq!(pinning.create(container).placement.reasons, [reason]);
    };
    check(&mut pinning, container("a", Qos::Burstable, Some(1)), "its Pod is Burstable");
    // As `ctr run` starts it: OCI's default of 1024 shares is no limit of one CPU.
    check(&mut pinning, container("n", None, Some(1)), "it is not in a Pod's cgroup below kubepods");
    check(&mut pinning, container("b", Qos::Guaranteed, None), "its CPU limit is not a whole number of CPUs");
    let opted_out = Container { wishes: Wishes { exclusive: false, ignored: vec![] }, ..guaranteed("c", 1) };
    check(&mut pinning, opted_out, "its Pod's annotation asks for no exclusive CPUs");
    let wrong = Wishes::parse([("pinning.keelson.dev/exclusive", "no")], "main");
    let mistaken = pinning.create(Container { wishes: wrong, ..guaranteed("d", 1) });
    assert_eq!(given(&mistaken), "0/0");
    assert_eq!(
        mistaken.placement.reasons.last().unwrap(),
        r#"ignored annotation pinning.keelson.dev/exclusive: "no" is neither "true" nor "false""#
    );
}

#[test]
fn a_container_that_comes_with_a_cpuset_is_left_alone() {
    let mut pinning = pinning("cores=4", "");
    let theirs = pinning.create(Container { cpus: set("0"), ..guaranteed("theirs", 1) });
    assert_eq!(given(&theirs), "/");
    assert_eq!(theirs.placement.reasons, ["it came with cpuset 0, set by the kubelet or another plugin"]);
    // Nor are its CPUs given to anybody alone.
    assert_eq!(given(&pinning.create(guaranteed("ours", 2))), "1-2/0");
    assert!(pinning.stop("ours").containers.is_empty());
}

#[test]
fn a_device_draws_its_container_to_its_node() {
    // Each node has 16 cores with 2 threads: node 1 has CPUs 16-31 and 48-63.
    let mut pinning = pinning("two-sockets", "");
    let with_device = Container { device_nodes: BTreeSet::from([1]), ..guaranteed("fpga", 2) };
    let outcome = pinning.create(with_device.clone());
    assert_eq!(given(&outcome), "16,48/1");
    assert!(outcome.placement.reasons.contains(&"its devices are on node 1".to_owned()));
    // Without a device the node with the tighter fit is taken, which keeps the empty one whole.
    assert_eq!(given(&pinning.create(guaranteed("plain", 4))), "17-18,49-50/1");
    let large = Container { id: "large".to_owned(), ..with_device };
    let outcome = pinning.create(Container { whole_cpus: Some(30), ..large });
    assert_eq!(given(&outcome), "0-14,32-46/0");
    assert!(
        outcome.placement.reasons.contains(&"its devices are on node 1, which has not enough free CPUs".to_owned())
    );
}

#[test]
fn cores_stay_whole_and_caches_together() {
    // 8 caches of 8 cores with 2 threads: cache 0 has CPUs 0-7 and 64-71.
    let mut pinning = pinning("cores=64 threads=2 l3=8", "");
    assert_eq!(given(&pinning.create(guaranteed("half-a-core", 1))), "0/0");
    // A cache with whole cores is better than the one with the broken core.
    assert_eq!(given(&pinning.create(guaranteed("a-cache", 16))), "8-15,72-79/0");
    assert_eq!(given(&pinning.create(guaranteed("two-cores", 4))), "1-2,65-66/0");
    // One more thread completes the broken core instead of breaking another.
    assert_eq!(given(&pinning.create(guaranteed("other-half", 1))), "64/0");
    assert_eq!(given(&pinning.create(guaranteed("more-than-a-cache", 18))), "3,16-23,67,80-87/0");
}

#[test]
fn what_fits_on_no_node_goes_to_the_nearest_ones() {
    let mut pinning = pinning("packages=2 cores=4 nodes=2", "");
    let outcome = pinning.create(guaranteed("large", 3));
    // Nodes 0 and 1 are in one package, and nearer to each other than to the rest.
    assert_eq!(given(&outcome), "0-2/0-1");
    assert!(
        outcome
            .placement
            .reasons
            .contains(&"no single NUMA node has so many free CPUs: they are on nodes 0-1".to_owned())
    );
}

#[test]
fn memory_is_bound_only_where_it_fits() {
    let mut pinning = pinning("packages=2 cores=4 memory=4GiB", "");
    let with_limit = |id: &str, limit| Container { memory_limit_bytes: limit, ..guaranteed(id, 1) };
    assert_eq!(given(&pinning.create(with_limit("a", Some(3 * GIB)))), "0/0");
    // Two such don't fit on one node, so the second goes to the other.
    assert_eq!(given(&pinning.create(with_limit("b", Some(3 * GIB)))), "4/1");
    let unbound = pinning.create(with_limit("c", Some(3 * GIB)));
    assert_eq!(given(&unbound), "1/");
    assert_eq!(
        unbound.placement.reasons.last().unwrap(),
        "its memory is not bound: 3221225472 bytes don't fit on node 0: 3221225472 of 4294967296 are promised"
    );
    assert_eq!(given(&pinning.create(with_limit("d", None))), "2/0");
}

#[test]
fn a_node_without_memory_binds_nothing() {
    // Nodes 1 and 3 have CPUs and no memory: whose memory fits goes to the others.
    let mut pinning = pinning("memoryless", "");
    assert_eq!(given(&pinning.create(guaranteed("a", 2))), "0,16/0");
    let drawn = Container { device_nodes: BTreeSet::from([1]), ..guaranteed("b", 2) };
    let outcome = pinning.create(drawn);
    assert_eq!(given(&outcome), "4,20/");
    assert_eq!(outcome.placement.reasons.last().unwrap(), "its memory is not bound: node 1 has no memory");
}

#[test]
fn a_kernel_without_numa_has_no_memory_nodes() {
    let mut pinning = pinning("no-numa", "");
    let outcome = pinning.create(guaranteed("a", 2));
    assert_eq!(given(&outcome), "0-1/");
    assert_eq!(outcome.placement.reasons, ["its Pod is Guaranteed and its limit is 2 whole CPUs: 0-1 are its own"]);
}

#[test]
fn a_successor_frees_what_its_predecessor_had() {
    let mut pinning = pinning("cores=4", "");
    assert_eq!(given(&pinning.create(guaranteed("old", 3))), "0-2/0");
    let successor = Container { pod: guaranteed("old", 3).pod, ..guaranteed("new", 3) };
    let outcome = pinning.create(successor);
    assert_eq!(given(&outcome), "0-2/0");
    assert_eq!(outcome.replaced, ["old"]);
    // The same container once more is the same decision, not a second one.
    let again = pinning.create(Container { pod: guaranteed("old", 3).pod, ..guaranteed("new", 3) });
    assert_eq!((given(&again), again.replaced.len()), ("0-2/0".to_owned(), 0));
}

#[test]
fn a_resize_places_anew_and_a_foreign_cpuset_is_not_fought() {
    let mut pinning = pinning("cores=8", "");
    pinning.create(best_effort("peer"));
    pinning.create(guaranteed("app", 2));
    let same =
        Container { cpus: set("0-1"), mems: set("0"), memory_limit_bytes: Some(2 * GIB), ..guaranteed("app", 2) };
    let outcome = pinning.change(same).unwrap();
    assert_eq!((given(&outcome), outcome.moves.containers.len()), ("/".to_owned(), 0));
    let larger = Container { cpus: set("0-1"), mems: set("0"), ..guaranteed("app", 3) };
    let outcome = pinning.change(larger).unwrap();
    assert_eq!(given(&outcome), "0-2/0");
    assert_eq!(moved(&outcome.moves), "peer to 3-7");
    let fractional = Container { whole_cpus: None, ..guaranteed("app", 3) };
    assert_eq!(given(&pinning.change(fractional).unwrap()), "0-7/0");
    pinning.change(guaranteed("app", 3)).unwrap();
    let foreign = Container { cpus: set("6"), mems: set("0"), ..guaranteed("app", 3) };
    let outcome = pinning.change(foreign).unwrap();
    assert_eq!(outcome.placement.kind, Kind::Untouched);
    assert_eq!(moved(&outcome.moves), "peer to 0-7");
    assert!(pinning.change(guaranteed("nobody", 1)).is_none());
}

#[test]
fn restart_adopts_by_record_and_moves_nothing() {
    let mut before = pinning("cores=4", "");
    before.create(guaranteed("app", 1));
    before.create(best_effort("peer"));
    let records = record_all(&before, true);
    // On this machine the shared set is CPUs 1-3; a container that shares might well have a single CPU elsewhere.
    let running = vec![
        Container { cpus: set("1-3"), ..best_effort("peer") },
        Container { cpus: set("0"), mems: set("0"), ..guaranteed("app", 1) },
    ];
    let mut after = Pinning::default();
    let machine = before.machine().clone();
    assert!(after.synchronize(machine, running, &records, false).containers.is_empty());
    assert_eq!(after.exclusive(), set("0"));
    assert_eq!(moved(&after.stop("app")), "peer to 0-3");
}

#[test]
fn a_shared_container_with_one_cpu_is_not_taken_for_an_exclusive_one() {
    let mut before = pinning("cores=2", "");
    before.create(guaranteed("app", 1));
    // Guaranteed with one CPU, as an exclusive one, but it had to share.
    assert_eq!(given(&before.create(guaranteed("late", 1))), "1/");
    let records = record_all(&before, true);
    let running = vec![
        Container { cpus: set("0"), mems: set("0"), ..guaranteed("app", 1) },
        Container { cpus: set("1"), ..guaranteed("late", 1) },
    ];
    let mut after = Pinning::default();
    assert!(after.synchronize(before.machine().clone(), running.clone(), &records, false).containers.is_empty());
    assert_eq!(after.exclusive(), set("0"));
    // Without records the cpusets are all there is to judge by; both count as exclusive, and nothing is moved.
    let mut blind = Pinning::default();
    assert!(blind.synchronize(before.machine().clone(), running, &BTreeMap::new(), false).containers.is_empty());
    assert_eq!(blind.exclusive(), set("0-1"));
    assert_eq!(given(&blind.create(best_effort("peer"))), "0-1/");
}

#[test]
fn what_ran_unpinned_only_makes_room() {
    let mut pinning = pinning("cores=4", "0");
    let machine = pinning.machine().clone();
    let running = vec![best_effort("peer"), guaranteed("early", 2)];
    // Running since before the plugin: neither gets CPUs of its own, neither is driven off the reserved CPU.
    assert!(pinning.synchronize(machine, running, &BTreeMap::new(), false).containers.is_empty());
    let app = pinning.create(guaranteed("app", 1));
    assert_eq!(given(&app), "1/0");
    assert_eq!(moved(&app.moves), "early peer to 2-3");
}

#[test]
fn a_record_that_the_runtime_does_not_confirm_is_not_believed() {
    let mut before = pinning("cores=4", "");
    before.create(guaranteed("lost", 1));
    before.create(guaranteed("moved", 1));
    let running = vec![guaranteed("lost", 1), Container { cpus: set("3"), ..guaranteed("moved", 1) }];
    let mut after = Pinning::default();
    after.synchronize(before.machine().clone(), running.clone(), &record_all(&before, true), false);
    assert_eq!(after.exclusive(), CpuSet::new());
    assert_eq!(
        after.placement("lost").unwrap().reasons,
        ["its exclusive CPUs 0 were decided, but the runtime started it without them"]
    );
    assert_eq!(after.placement("moved").unwrap().kind, Kind::Untouched);
    // What was only observed was never told to the runtime; it stands only for who goes on observing.
    let observed = record_all(&before, false);
    after.synchronize(before.machine().clone(), vec![guaranteed("lost", 1)], &observed, true);
    assert_eq!(after.exclusive(), set("0"));
    after.synchronize(before.machine().clone(), vec![guaranteed("lost", 1)], &observed, false);
    assert_eq!(after.exclusive(), CpuSet::new());
}

fn record_all(pinning: &Pinning, enforced: bool) -> BTreeMap<String, Recorded> {
    let recorded = |placement: &Placement| Recorded { placement: placement.clone(), enforced };
    pinning.placements().map(|(container, placement)| (container.id.clone(), recorded(placement))).collect()
}

/// What the kubelet and the runtime may do next.
#[derive(Clone, Debug)]
enum Step {
    Create(Box<Container>),
    Stop(Index),
    Forget(Index),
    ForgetPod(Index),
    Resize(Index, Option<u32>),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let qos = prop_oneof![
        3 => Just(Some(Qos::Guaranteed)),
        1 => Just(Some(Qos::Burstable)),
        1 => Just(Some(Qos::BestEffort)),
        1 => Just(None),
    ];
    let create = (
        qos,
        prop::option::weighted(0.8, 1u32..12),
        prop::option::of(1u64..200),
        prop::collection::btree_set(0u32..6, 0..2),
        prop::bool::weighted(0.9),
        prop::option::weighted(0.1, 0u32..8),
    )
        .prop_map(|(qos, whole_cpus, gibibytes, device_nodes, exclusive, foreign)| {
            Step::Create(Box::new(Container {
                memory_limit_bytes: gibibytes.map(|count| count * GIB),
                device_nodes,
                wishes: Wishes { exclusive, ignored: vec![] },
                cpus: foreign.into_iter().collect(),
                ..container("", qos, whole_cpus)
            }))
        });
    let step = prop_oneof![
        6 => create,
        2 => any::<Index>().prop_map(Step::Stop),
        1 => any::<Index>().prop_map(Step::Forget),
        1 => any::<Index>().prop_map(Step::ForgetPod),
        1 => (any::<Index>(), prop::option::of(1u32..8)).prop_map(|(which, cpus)| Step::Resize(which, cpus)),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..25)
}

/// Small machines of every kind, so that histories come to their limits.
const MACHINES: [(&str, &str); 9] = [
    ("cores=2", ""),
    ("cores=1", ""),
    ("cores=4 threads=2", "0,4"),
    ("packages=2 cores=4 threads=2 nodes=2 memory=64GiB", "0"),
    ("cores=8 threads=2 l3=4 memory=100GiB", ""),
    ("packages=2 cores=4 threads=2 missing=2-3,9 missing-nodes=0 offline=5", "1"),
    ("packages=2 cores=4 nodes=2 memoryless=1,3", "0-1"),
    ("cores=6 memory-nodes=64GiB,2x0", ""),
    ("cores=4 nodes=0", "3"),
];

/// What runs, as the runtime knows it: the policy's answers applied.
#[derive(Default)]
struct Runtime {
    running: BTreeMap<String, Container>,
}

impl Runtime {
    fn apply(&mut self, id: &str, assignment: &Assignment) {
        // An update of a container that ended meanwhile is ignored.
        if let Some(container) = self.running.get_mut(id) {
            if !assignment.cpus.is_empty() {
                container.cpus = assignment.cpus.clone();
            }
            if !assignment.mems.is_empty() {
                container.mems = assignment.mems.clone();
            }
        }
    }

    fn pick(&self, which: Index) -> Option<String> {
        (!self.running.is_empty()).then(|| self.running.keys().nth(which.index(self.running.len())).unwrap().clone())
    }
}

fn check_assignment(topology: &Topology, assignment: &Assignment) {
    assert!(assignment.cpus.is_subset(&topology.online()), "{assignment:?}");
    for node in &assignment.mems {
        assert!(topology.node(node).is_some_and(|node| node.memory_bytes > 0), "{assignment:?}");
    }
}

fn check_moves(runtime: &mut Runtime, topology: &Topology, created: Option<&str>, moves: &Moves) {
    assert!(!moves.cpus.is_empty());
    let assignment = Assignment { cpus: (*moves.cpus).clone(), mems: CpuSet::new() };
    check_assignment(topology, &assignment);
    let mut seen = BTreeSet::new();
    for container in &moves.containers {
        assert_ne!(Some(container.as_str()), created, "an update for the container being created");
        assert!(seen.insert(container), "two updates for one container");
        runtime.apply(container, &assignment);
    }
}

fn check_state(pinning: &Pinning, runtime: &Runtime, reserved: &CpuSet) {
    let is_free = |mems: &CpuSet| mems.is_empty() || *mems == pinning.machine().memory_nodes();
    let mut taken = CpuSet::new();
    assert!(!pinning.shared().is_empty());
    for (container, placement) in pinning.placements() {
        if let Kind::Exclusive { cpus, mems } = &placement.kind {
            assert!(!cpus.is_empty() && cpus.is_disjoint(&taken) && cpus.is_disjoint(reserved), "{container:?} {cpus}");
            assert_eq!(u32::try_from(cpus.len()).ok(), container.whole_cpus);
            taken.extend(cpus);
            let actual = &runtime.running[&container.id];
            assert_eq!(&actual.cpus, cpus);
            assert!(if mems.is_empty() { is_free(&actual.mems) } else { actual.mems == *mems });
        }
    }
    for (container, placement) in pinning.placements() {
        if let Kind::Shared { .. } = placement.kind {
            let actual = &runtime.running[&container.id].cpus;
            assert!(
                !actual.is_empty() && actual.is_disjoint(&taken),
                "{container:?} runs on {actual}, {taken} are taken"
            );
            assert!(is_free(&runtime.running[&container.id].mems));
        }
    }
}

/// An exclusive container is on one node if one had room for it.
fn check_locality(before: &Pinning, topology: &Topology, outcome: &Outcome) {
    let Kind::Exclusive { cpus, .. } = &outcome.placement.kind else { return };
    if topology.nodes.iter().any(|node| cpus.is_subset(&node.cpus)) || topology.nodes.is_empty() {
        return;
    }
    let mut free = topology.online().difference(before.machine().reserved()).difference(&before.exclusive());
    for (container, placement) in before.placements() {
        if placement.kind == Kind::Untouched {
            free = free.difference(&container.cpus);
        }
    }
    for node in &topology.nodes {
        assert!(node.cpus.intersection(&free).len() < cpus.len(), "{cpus} could be on node {}", node.id);
    }
}

proptest! {
    #[test]
    fn every_history_keeps_the_invariants((machine, steps) in (0..MACHINES.len(), steps())) {
        let (spec, reserved) = MACHINES[machine];
        let (topology, reserved) = (topology(spec), set(reserved));
        let mut pinning = pinning(spec, &reserved.to_string());
        let mut runtime = Runtime::default();
        for (number, step) in steps.into_iter().enumerate() {
            let before = pinning.clone();
            match step {
                Step::Create(container) => {
                    let id = format!("c{number:02}");
                    let cpus = container.cpus.intersection(&topology.online());
                    let pod = Pod { sandbox: format!("p{}", number % 4), ..Pod::default() };
                    let container = Container { id: id.clone(), name: id.clone(), pod, cpus, ..*container };
                    let outcome = pinning.create(container.clone());
                    runtime.running.insert(id.clone(), container);
                    check_moves(&mut runtime, &topology, Some(&id), &outcome.moves);
                    check_assignment(&topology, &outcome.assignment);
                    runtime.apply(&id, &outcome.assignment);
                    check_locality(&before, &topology, &outcome);
                    // Had it ended at once, everything would be as before.
                    let mut ended = pinning.clone();
                    ended.stop(&id);
                    prop_assert_eq!((ended.shared(), ended.exclusive()), (before.shared(), before.exclusive()));
                }
                Step::Stop(which) => {
                    let Some(id) = runtime.pick(which) else { continue };
                    let moves = pinning.stop(&id);
                    runtime.running.remove(&id);
                    check_moves(&mut runtime, &topology, None, &moves);
                    prop_assert!(pinning.stop(&id).containers.is_empty());
                }
                Step::Forget(which) => {
                    let Some(id) = runtime.pick(which) else { continue };
                    pinning.forget(&id);
                    runtime.running.remove(&id);
                }
                Step::ForgetPod(which) => {
                    let Some(id) = runtime.pick(which) else { continue };
                    for gone in pinning.forget_pod(&runtime.running[&id].pod.sandbox.clone()) {
                        runtime.running.remove(&gone);
                    }
                    prop_assert!(!runtime.running.contains_key(&id));
                }
                Step::Resize(which, whole_cpus) => {
                    let Some(id) = runtime.pick(which) else { continue };
                    let resized = Container { whole_cpus, ..runtime.running[&id].clone() };
                    runtime.running.insert(id.clone(), resized.clone());
                    let outcome = pinning.change(Container { cpus: CpuSet::new(), ..resized }).unwrap();
                    check_moves(&mut runtime, &topology, None, &outcome.moves);
                    check_assignment(&topology, &outcome.assignment);
                    runtime.apply(&id, &outcome.assignment);
                }
                Step::Restart => {
                    let records = record_all(&pinning, true);
                    let machine = || Machine::new(&topology, &reserved);
                    let mut running: Vec<Container> = runtime.running.values().cloned().collect();
                    let mut restarted = Pinning::default();
                    let moves = restarted.synchronize(machine(), running.clone(), &records, false);
                    // The order of the report decides nothing.
                    running.reverse();
                    let mut reversed = Pinning::default();
                    prop_assert_eq!(&reversed.synchronize(machine(), running, &records, false), &moves);
                    // Nobody loses what was his own, and nobody is moved but to catch up with a removal.
                    prop_assert_eq!(restarted.exclusive(), pinning.exclusive());
                    let mut undisturbed = pinning.clone();
                    prop_assert_eq!(&undisturbed.stop("nobody"), &moves);
                    check_moves(&mut runtime, &topology, None, &moves);
                    // The same once more is no news.
                    let running = runtime.running.values().cloned().collect();
                    prop_assert!(restarted.synchronize(machine(), running, &records, false).containers.is_empty());
                    pinning = restarted;
                }
            }
            check_state(&pinning, &runtime, &reserved);
        }
    }
}
