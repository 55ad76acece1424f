use super::*;
use crate::model::{GangSource, Labels, PodTemplate, Str};
use crate::profile::Profile;
use crate::testing::{node, plain, pod};

fn gang() -> GangRef {
    GangRef { namespace: "default".into(), name: "g".into(), source: GangSource::Field }
}

fn members(count: usize, template: &PodTemplate) -> Vec<Arc<PodInfo>> {
    let mut template = template.clone();
    template.gang = Some(gang());
    (0..count).map(|n| pod(&format!("m{n}"), template.clone())).collect()
}

fn cluster(nodes: &[(&str, &str, i64)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, rack, cpu) in nodes {
        let mut info = node(name, *cpu, 1000);
        info.labels = Labels::from_iter([("rack", *rack)]);
        snapshot.set_node(info);
    }
    snapshot
}

fn decide(pods: &[Arc<PodInfo>], spec: &GangSpec, snapshot: &mut Snapshot) -> GangVerdict {
    let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
    let gang = gang();
    core.schedule_gang(GangRequest { gang: &gang, spec, pods, placed: 0 }, snapshot, 1, &|_, _| Vec::new())
}

fn spec(min_count: usize, topology: &[&str]) -> GangSpec {
    GangSpec { min_count, topology: topology.iter().map(|key| Str::from(*key)).collect(), ..GangSpec::default() }
}

#[test]
fn all_or_nothing() {
    let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000)]);
    let pods = members(3, &plain(1000, 1));
    let GangVerdict::Unschedulable(failure) = decide(&pods, &spec(3, &[]), &mut snapshot) else {
        panic!("only two fit")
    };
    assert!(snapshot.nodes().all(|(_, node)| node.pods().is_empty()), "nothing is held");
    assert!(
        failure
            .message()
            .starts_with("pod group \"g\": minCount (3) cannot be satisfied: 2 scheduled, 1 remaining. 0/2")
    );
    let GangVerdict::Placed { placed, waiting } = decide(&pods, &spec(2, &[]), &mut snapshot) else {
        panic!("two are enough")
    };
    assert_eq!((placed.len(), waiting.len()), (2, 1));
}

#[test]
fn a_topology_keeps_the_gang_in_one_domain() {
    let nodes = [("a", "1", 1000), ("b", "2", 1000), ("c", "2", 1000)];
    let GangVerdict::Placed { placed, .. } =
        decide(&members(2, &plain(1000, 1)), &spec(2, &["rack"]), &mut cluster(&nodes))
    else {
        panic!("rack 2 has room")
    };
    let mut names: Vec<_> = placed.iter().map(|(_, placement)| placement.node.to_string()).collect();
    names.sort();
    assert_eq!(names, ["b", "c"]);
    let verdict = decide(&members(3, &plain(1000, 1)), &spec(3, &["rack"]), &mut cluster(&nodes));
    assert!(matches!(verdict, GangVerdict::Unschedulable(_)), "no rack has three places");
}

#[test]
fn a_gang_preempts_for_all_of_its_minimum_or_not_at_all() {
    let mut important = plain(1000, 1);
    important.priority = 10;
    let fill = |nodes: &[(&str, i32)]| {
        let mut snapshot = cluster(&nodes.iter().map(|(name, _)| (*name, "1", 1000)).collect::<Vec<_>>());
        for (name, priority) in nodes {
            let mut template = plain(1000, 1);
            template.priority = *priority;
            snapshot.add_pod(pod(&format!("v-{name}"), template), name);
        }
        snapshot
    };
    let mut both = fill(&[("a", 0), ("b", 0)]);
    let GangVerdict::Unschedulable(failure) = decide(&members(2, &important), &spec(2, &[]), &mut both) else {
        panic!("full")
    };
    assert_eq!(failure.preemption.iter().map(|(_, plan)| plan.victims.len()).sum::<usize>(), 2);
    assert!(both.pod("v-a").is_some() && both.pod("v-b").is_some(), "a proposal evicts nobody");
    let mut one = fill(&[("a", 0), ("b", 100)]);
    let GangVerdict::Unschedulable(failure) = decide(&members(2, &important), &spec(2, &[]), &mut one) else {
        panic!("full")
    };
    assert!(failure.preemption.is_empty(), "half a gang is no reason to evict");
}

/// On which nodes a gang is placed, sorted; empty if it is not.
fn places(pods: &[Arc<PodInfo>], spec: &GangSpec, snapshot: &mut Snapshot) -> Vec<String> {
    let GangVerdict::Placed { placed, .. } = decide(pods, spec, snapshot) else { return Vec::new() };
    let mut names: Vec<String> = placed.iter().map(|(_, placement)| placement.node.to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_preferred_topology_is_kept_where_it_can_be_and_is_no_condition() {
    let prefers =
        |keys: &[&str]| GangSpec { preferred: keys.iter().map(|key| Str::from(*key)).collect(), ..spec(2, &[]) };
    let labelled = |nodes: &[(&str, &str, &str)]| {
        let mut snapshot = Snapshot::default();
        for (name, rack, zone) in nodes {
            let mut info = node(name, 1000, 1000);
            info.labels = Labels::from_iter([("rack", *rack), ("zone", *zone)]);
            snapshot.set_node(info);
        }
        snapshot
    };
    let (one_rack, one_zone) =
        ([("a", "1", "x"), ("b", "2", "x"), ("c", "2", "x")], [("a", "1", "x"), ("b", "2", "y"), ("c", "3", "y")]);
    let apart = [("a", "1", "x"), ("b", "2", "y")];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 4] = [
        ("a rack has room", &one_rack, &["rack"], &["b", "c"]),
        ("no rack has, but a zone does", &one_zone, &["rack", "zone"], &["b", "c"]),
        ("nothing has: anywhere", &apart, &["rack", "zone"], &["a", "b"]),
        ("nobody has the key: anywhere", &apart, &["row"], &["a", "b"]),
    ];
    for (case, nodes, keys, expected) in cases {
        assert_eq!(places(&members(2, &plain(1000, 1)), &prefers(keys), &mut labelled(nodes)), expected, "{case}");
    }
    // Within what is required, what is preferred.
    let both = GangSpec { topology: vec!["zone".into()], ..prefers(&["rack"]) };
    assert_eq!(places(&members(2, &plain(1000, 1)), &both, &mut labelled(&one_zone)), ["b", "c"]);
    assert!(places(&members(2, &plain(1000, 1)), &both, &mut labelled(&apart)).is_empty());
}

#[test]
fn the_annotation_names_preferred_keys_in_order() {
    let cases: [(Option<&str>, &[&str]); 4] = [
        (None, &[]),
        (Some(""), &[]),
        (Some("rack, zone"), &["rack", "zone"]),
        (Some("a,b,c,d,e"), &["a", "b", "c", "d"]),
    ];
    for (annotation, expected) in cases {
        let keys: Vec<String> = GangSpec::preferred_of(annotation).iter().map(ToString::to_string).collect();
        assert_eq!(keys, expected, "{annotation:?}");
    }
}

fn with_priority(priority: i32, cpu: i64) -> PodTemplate {
    let mut template = plain(cpu, 1);
    template.priority = priority;
    template
}

fn failure(verdict: GangVerdict) -> GangFailure {
    match verdict {
        GangVerdict::Unschedulable(failure) => failure,
        GangVerdict::Placed { placed, .. } => panic!("{} members found room", placed.len()),
    }
}

fn victims(failure: &GangFailure) -> Vec<String> {
    let all = failure.preemption.iter().flat_map(|(_, plan)| &plan.victims);
    let mut names: Vec<String> = all.map(|victim| victim.key.name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn no_more_go_than_the_minimum_needs() {
    let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000), ("c", "1", 1000)]);
    for name in ["a", "b", "c"] {
        snapshot.add_pod(pod(&format!("v-{name}"), with_priority(0, 1000)), name);
    }
    let failure = failure(decide(&members(3, &with_priority(10, 1000)), &spec(2, &[]), &mut snapshot));
    assert_eq!(victims(&failure).len(), 2, "the third member evicts nobody");
    assert_eq!(failure.preemption.len(), 2, "every member of the minimum is promised its room");
}

#[test]
fn who_need_not_go_for_the_gang_as_a_whole_stays() {
    // The first member evicts the small Pod; the second needs all of the node, and the first fits beside the large one.
    let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1500)]);
    snapshot.add_pod(pod("v-a", with_priority(0, 600)), "a");
    snapshot.add_pod(pod("v-b", with_priority(1, 1000)), "b");
    let mut pods = members(1, &with_priority(10, 500));
    pods.extend(members(2, &with_priority(10, 1000)).into_iter().skip(1));
    let failure = failure(decide(&pods, &spec(2, &[]), &mut snapshot));
    assert_eq!(victims(&failure), ["v-a"]);
}

#[test]
fn a_victims_group_goes_as_a_whole_or_stays_as_a_whole() {
    let group = GangRef { name: "victims".into(), ..gang() };
    let member = |name: &str, priority| {
        let mut template = with_priority(priority, 1000);
        template.gang = Some(group.clone());
        pod(name, template)
    };
    let mates = |victim: &PodInfo, snapshot: &Snapshot| -> Vec<Arc<PodInfo>> {
        let pods = snapshot.nodes().flat_map(|(_, node)| node.pods());
        pods.filter(|pod| pod.template.gang.is_some() && pod.template.gang == victim.template.gang).cloned().collect()
    };
    for (other, expected) in [(0, vec!["v1", "v2"]), (50, vec![])] {
        let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000), ("c", "1", 1000)]);
        snapshot.add_pod(member("v1", 0), "a");
        snapshot.add_pod(member("v2", other), "b");
        snapshot.add_pod(pod("strong", with_priority(100, 1000)), "c");
        let (pods, spec, gang) = (members(1, &with_priority(10, 1000)), spec(1, &[]), gang());
        let request = GangRequest { gang: &gang, spec: &spec, pods: &pods, placed: 0 };
        let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
        let failure = failure(core.schedule_gang(request, &mut snapshot, 1, &mates));
        assert_eq!(victims(&failure), expected, "the mate has priority {other}");
    }
}

#[test]
fn a_gang_whose_victims_are_leaving_waits_for_them_and_keeps_its_promises() {
    let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000)]);
    snapshot.add_pod(pod("v-b", with_priority(5, 1000)), "b");
    let leaving = PodInfo { terminating: true, preempted: true, ..(*pod("v-a", with_priority(0, 1000))).clone() };
    snapshot.add_pod(Arc::new(leaving), "a");
    let pods = members(1, &with_priority(10, 1000));
    snapshot.nominate(Arc::clone(&pods[0]), "a");
    let failure = failure(decide(&pods, &spec(1, &[]), &mut snapshot));
    assert!(failure.pending && failure.preemption.is_empty(), "nobody else has to go: {failure:?}");
}

#[test]
fn room_is_made_in_the_domain_where_it_costs_least() {
    let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000), ("c", "2", 1000), ("d", "2", 1000)]);
    for (node, priority) in [("a", 5), ("b", 5), ("c", 1), ("d", 1)] {
        snapshot.add_pod(pod(&format!("v-{node}"), with_priority(priority, 1000)), node);
    }
    let failure = failure(decide(&members(2, &with_priority(10, 1000)), &spec(2, &["rack"]), &mut snapshot));
    assert_eq!(victims(&failure), ["v-c", "v-d"]);
}

#[test]
fn two_gangs_that_want_the_same_room_never_hold_half_each() {
    let mut snapshot = cluster(&[("a", "1", 1000), ("b", "1", 1000), ("c", "1", 1000)]);
    let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
    let spec = spec(2, &[]);
    let mut placed = 0;
    for name in ["one", "two"] {
        let gang = GangRef { name: name.into(), ..gang() };
        let mut template = plain(1000, 1);
        template.gang = Some(gang.clone());
        let pods: Vec<_> = (0..2).map(|n| pod(&format!("{name}-{n}"), template.clone())).collect();
        let request = GangRequest { gang: &gang, spec: &spec, pods: &pods, placed: 0 };
        if let GangVerdict::Placed { placed: members, .. } =
            core.schedule_gang(request, &mut snapshot, 1, &|_, _| Vec::new())
        {
            placed += members.len();
        }
    }
    assert_eq!(placed, 2);
    assert_eq!(snapshot.nodes().map(|(_, node)| node.pods().len()).sum::<usize>(), 2, "the other holds nothing");
}
