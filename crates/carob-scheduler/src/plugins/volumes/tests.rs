use super::*;
use crate::core::Core;
use crate::model::{
    Bytes, ClassFacts, DriverLimit, NodeRequirement, NodeSelectorTerm, Operator, Requirement, Selector,
};
use crate::profile::Profile;
use crate::testing::{node, plain, pod, state};

fn with_claims(names: &[&str]) -> PodTemplate {
    let mut pod = plain(0, 0);
    pod.volumes = names.iter().map(|name| PodVolume::Claim { name: (*name).into(), ephemeral: false }).collect();
    pod
}

fn key(name: &str) -> ClaimKey {
    ClaimKey { namespace: "default".into(), name: name.into() }
}

fn zone_term(zone: &str) -> NodeSelectorTerm {
    NodeSelectorTerm([NodeRequirement::Label(Requirement::new("zone", Operator::In, &[zone]))].into())
}

fn volume(name: &str, gib: i64, zone: &str) -> (Str, VolumeInfo) {
    let affinity = Some([zone_term(zone)].into());
    let capacity = Bytes(gib << 30);
    (
        name.into(),
        VolumeInfo {
            name: name.into(),
            capacity,
            class: "local".into(),
            affinity,
            available: true,
            ..Default::default()
        },
    )
}

#[test]
fn claims_reject_the_pod_as_a_whole_in_upstreams_words() {
    let mut snapshot = Snapshot::default();
    snapshot.facts_mut().change_volumes(|volumes| {
        volumes.claims.insert(key("dying"), ClaimFacts { bound: true, terminating: true, ..Default::default() });
        volumes.claims.insert(key("immediate"), ClaimFacts::default());
        volumes.claims.insert(key("bound"), ClaimFacts { bound: true, ..Default::default() });
    });
    let cases = [
        ("absent", Some("persistentvolumeclaim \"absent\" not found")),
        ("dying", Some("persistentvolumeclaim \"dying\" is being deleted")),
        ("immediate", Some("pod has unbound immediate PersistentVolumeClaims")),
        ("bound", None),
    ];
    for (claim, expected) in cases {
        let got = whole(&pod("p", with_claims(&[claim])), &snapshot);
        assert_eq!(got.as_ref().map(|r| &*r.reasons[0]), expected, "{claim}");
    }
}

#[test]
fn waiting_claims_take_the_smallest_volume_that_reaches_the_node() {
    let mut facts = VolumeFacts::default();
    facts
        .classes
        .insert("local".into(), ClassFacts { provisioner: NO_PROVISIONER.into(), waits: true, ..Default::default() });
    facts.volumes.extend([volume("big", 20, "a"), volume("small", 10, "a"), volume("far", 5, "b")]);
    let claim = |gib: i64| ClaimFacts { class: Some("local".into()), request: Bytes(gib << 30), ..Default::default() };
    facts.claims.insert(key("one"), claim(5));
    facts.claims.insert(key("two"), claim(6));
    let in_a: Labels = [("zone", "a")].into_iter().collect();
    let plan_for = |names: &[&str], labels: &Labels| plan(&with_claims(names), &"n1".into(), labels, &facts);
    let both = plan_for(&["two", "one"], &in_a).expect("both fit");
    assert_eq!(both.bind, [(key("one"), "small".into()), (key("two"), "big".into())]);
    let in_b: Labels = [("zone", "b")].into_iter().collect();
    assert_eq!(plan_for(&["two"], &in_b), Err("node(s) didn't find available persistent volumes to bind"));
}

#[test]
fn a_class_with_a_provisioner_makes_the_volume_where_its_topology_allows() {
    let mut facts = VolumeFacts::default();
    let class = ClassFacts { provisioner: "csi.example.com".into(), waits: true, topologies: vec![zone_term("a")] };
    facts.classes.insert("fast".into(), class);
    facts.claims.insert(key("one"), ClaimFacts { class: Some("fast".into()), ..Default::default() });
    let plan_in =
        |zone: &str| plan(&with_claims(&["one"]), &"n1".into(), &[("zone", zone)].into_iter().collect(), &facts);
    assert_eq!(plan_in("a").map(|plan| plan.provision), Ok(vec![key("one")]));
    assert!(plan_in("b").is_err());
}

#[test]
fn disks_and_limits_and_zones_reject_nodes() {
    let profile = Profile::default_for("default-scheduler");
    let mut snapshot = Snapshot::default();
    snapshot.facts_mut().change_volumes(|volumes| {
        let handle = |name: &str| VolumeInfo {
            name: name.into(),
            csi_driver: Some("csi".into()),
            csi_handle: Some(name.into()),
            zones: vec![("topology.kubernetes.io/zone".into(), vec!["a".into()])],
            ..Default::default()
        };
        for name in ["v1", "v2"] {
            volumes.volumes.insert(name.into(), handle(name));
            let claim = ClaimFacts { bound: true, volume: Some(name.into()), ..Default::default() };
            volumes.claims.insert(key(name), claim);
        }
        volumes.limits.insert("n1".into(), vec![DriverLimit { driver: "csi".into(), count: 1 }]);
    });
    let site = Site { profile: &profile, facts: snapshot.facts(), nodes: 1 };
    let full = state(node("n1", 1, 1), &[with_claims(&["v1"])]);
    assert!(limits(&with_claims(&["v2"]), &full, site).is_some());
    assert!(limits(&with_claims(&["v1"]), &full, site).is_none(), "a volume that is attached already needs no place");
    assert!(zone(&with_claims(&["v1"]), &full, site).is_some());

    let disk = |read_only, shareable| {
        let mut pod = plain(0, 0);
        pod.volumes = [PodVolume::Disk { id: "d".into(), read_only, shareable }].into();
        pod
    };
    let readers = state(node("n1", 1, 1), &[disk(true, true)]);
    assert!(restrictions(&disk(true, true), &readers, site).is_none());
    assert!(restrictions(&disk(false, true), &readers, site).is_some());
    assert!(restrictions(&disk(true, false), &readers, site).is_some());
}

#[test]
fn ephemeral_and_lost_claims_reject_the_pod_as_a_whole() {
    let mut snapshot = Snapshot::default();
    snapshot.facts_mut().change_volumes(|volumes| {
        let of = |owner: &str| ClaimFacts { bound: true, owners: vec![owner.into()], ..Default::default() };
        volumes.claims.insert(key("own"), of("p"));
        volumes.claims.insert(key("foreign"), of("another"));
        let lost = ClaimFacts { bound: true, lost: true, volume: Some("gone".into()), ..Default::default() };
        volumes.claims.insert(key("lost"), lost);
    });
    let cases = [
        ("own", true, None),
        ("foreign", false, None),
        ("foreign", true, Some("PVC \"default/foreign\" was not created for pod \"default/p\"")),
        (
            "absent",
            true,
            Some("waiting for ephemeral volume controller to create the persistentvolumeclaim \"absent\""),
        ),
        ("lost", false, Some("persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"gone\"")),
    ];
    for (claim, ephemeral, expected) in cases {
        let mut template = plain(0, 0);
        template.volumes = [PodVolume::Claim { name: claim.into(), ephemeral }].into();
        let got = whole(&pod("p", template), &snapshot);
        assert_eq!(got.as_ref().map(|r| &*r.reasons[0]), expected, "{claim}, ephemeral: {ephemeral}");
    }
}

#[test]
fn a_bound_claim_ties_the_pod_to_where_its_volume_is() {
    let mut facts = VolumeFacts::default();
    facts.volumes.extend([volume("near", 1, "a")]);
    for (name, volume) in [("near", "near"), ("nowhere", "gone")] {
        facts.claims.insert(key(name), ClaimFacts { bound: true, volume: Some(volume.into()), ..Default::default() });
    }
    let cases = [
        ("near", "a", Ok(())),
        ("near", "b", Err("node(s) didn't match PersistentVolume's node affinity")),
        ("nowhere", "a", Err("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")),
    ];
    for (claim, zone, expected) in cases {
        let labels = [("zone", zone)].into_iter().collect();
        let got = plan(&with_claims(&[claim]), &"n1".into(), &labels, &facts).map(|_| ());
        assert_eq!(got, expected, "{claim} in {zone}");
    }
}

#[test]
fn a_volume_is_bound_only_if_it_is_what_the_claim_asks_for() {
    type Change = fn(&mut ClaimFacts, &mut VolumeInfo);
    let cases: [(&str, Change, bool); 12] = [
        ("it is", |_, _| {}, true),
        ("too small", |claim, _| claim.request = Bytes(11 << 30), false),
        ("another class", |_, volume| volume.class = "other".into(), false),
        ("another access mode", |claim, _| claim.access_modes = vec!["ReadWriteMany".into()], false),
        ("another volume mode", |_, volume| volume.volume_mode_block = true, false),
        ("not selected", |claim, _| claim.selector = Some(Selector::equal(&[("tier", "fast")])), false),
        (
            "selected",
            |claim, volume| {
                claim.selector = Some(Selector::equal(&[("tier", "fast")]));
                volume.labels = Labels::from_iter([("tier", "fast")]);
            },
            true,
        ),
        ("not available", |_, volume| volume.available = false, false),
        ("promised to this claim", |_, volume| (volume.available, volume.claim) = (false, Some(key("one"))), true),
        (
            "kept from an earlier claim of that name",
            |claim, volume| {
                claim.uid = "new".into();
                (volume.available, volume.claim, volume.claim_uid) = (false, Some(key("one")), Some("old".into()));
            },
            false,
        ),
        ("promised to another", |_, volume| volume.claim = Some(key("two")), false),
        ("meant for another node", |claim, _| claim.selected_node = Some("n2".into()), false),
    ];
    for (case, change, expected) in cases {
        let mut facts = VolumeFacts::default();
        let class = ClassFacts { provisioner: NO_PROVISIONER.into(), waits: true, ..Default::default() };
        facts.classes.insert("local".into(), class);
        let (name, mut info) = volume("small", 10, "a");
        info.access_modes = vec!["ReadWriteOnce".into()];
        let mut claim = ClaimFacts {
            class: Some("local".into()),
            request: Bytes(5 << 30),
            access_modes: vec!["ReadWriteOnce".into()],
            ..Default::default()
        };
        change(&mut claim, &mut info);
        facts.volumes.insert(name, info);
        facts.claims.insert(key("one"), claim);
        let labels = [("zone", "a")].into_iter().collect();
        let got = plan(&with_claims(&["one"]), &"n1".into(), &labels, &facts);
        assert_eq!(got.is_ok_and(|plan| plan.bind.len() == 1), expected, "{case}");
    }
}

#[test]
fn volumes_of_a_driver_are_counted_once_each_up_to_its_limit() {
    let csi = |driver: &str| PodVolume::InlineCsi { driver: driver.into() };
    let claim = |name: &str| PodVolume::Claim { name: name.into(), ephemeral: false };
    let profile = Profile::default_for("default-scheduler");
    let mut snapshot = Snapshot::default();
    snapshot.facts_mut().change_volumes(|volumes| {
        let class = ClassFacts { provisioner: "csi".into(), waits: true, ..Default::default() };
        volumes.classes.insert("made".into(), class);
        for name in ["a", "b", "c"] {
            volumes.claims.insert(key(name), ClaimFacts { class: Some("made".into()), ..Default::default() });
        }
        volumes.limits.insert("n1".into(), vec![DriverLimit { driver: "csi".into(), count: 2 }]);
    });
    let site = Site { profile: &profile, facts: snapshot.facts(), nodes: 1 };
    let with = |volumes: &[PodVolume]| {
        let mut template = plain(0, 0);
        template.volumes = volumes.into();
        template
    };
    type Case<'a> = (&'a str, &'a str, Vec<PodVolume>, Vec<PodVolume>, bool);
    let cases: [Case<'_>; 8] = [
        ("room for two", "n1", vec![], vec![claim("a"), claim("b")], true),
        ("none for three", "n1", vec![], vec![claim("a"), claim("b"), claim("c")], false),
        ("the third beside two", "n1", vec![claim("a"), claim("b")], vec![claim("c")], false),
        ("one that is there already", "n1", vec![claim("a"), claim("b")], vec![claim("b")], true),
        ("inline ones count", "n1", vec![claim("a"), claim("b")], vec![csi("csi")], false),
        ("another driver's do not", "n1", vec![claim("a"), claim("b")], vec![csi("other")], true),
        ("a Pod without volumes", "n1", vec![claim("a"), claim("b"), claim("c")], vec![], true),
        ("a node without limits", "n2", vec![claim("a"), claim("b")], vec![claim("c")], true),
    ];
    for (case, name, there, wants, expected) in cases {
        let node = state(node(name, 1, 1), &[with(&there)]);
        let got = limits(&with(&wants), &node, site);
        assert_eq!(got.is_none(), expected, "{case}");
        if let Some(rejection) = got {
            assert_eq!((&*rejection.reasons[0], rejection.resolvable), ("node(s) exceed max volume count", true));
        }
    }
}

#[test]
fn a_volume_of_some_zones_is_reached_from_these_only() {
    let profile = Profile::default_for("default-scheduler");
    let zone_key = "topology.kubernetes.io/zone";
    let mut snapshot = Snapshot::default();
    snapshot.facts_mut().change_volumes(|volumes| {
        let zones = vec![(Str::from(zone_key), vec![Str::from("a"), Str::from("b")])];
        volumes.volumes.insert("v".into(), VolumeInfo { name: "v".into(), zones, ..Default::default() });
        volumes.claims.insert(key("c"), ClaimFacts { bound: true, volume: Some("v".into()), ..Default::default() });
    });
    let site = Site { profile: &profile, facts: snapshot.facts(), nodes: 1 };
    let cases = [(Some("a"), true), (Some("b"), true), (Some("c"), false), (None, false)];
    for (value, expected) in cases {
        let mut info = node("n1", 1, 1);
        info.labels = value.map(|value| (zone_key, value)).into_iter().collect();
        let got = zone(&with_claims(&["c"]), &state(info, &[]), site);
        assert_eq!(got.is_none(), expected, "{value:?}");
        assert!(got.is_none_or(|rejection| !rejection.resolvable));
    }
}

#[test]
fn disks_are_shared_as_their_kind_allows() {
    let profile = Profile::default_for("default-scheduler");
    let snapshot = Snapshot::default();
    let site = Site { profile: &profile, facts: snapshot.facts(), nodes: 1 };
    let disk = |id: &str, read_only, shareable| {
        let mut template = plain(0, 0);
        template.volumes = [PodVolume::Disk { id: id.into(), read_only, shareable }].into();
        template
    };
    let cases = [
        ("both read a disk for readers", disk("d", true, true), disk("d", true, true), true),
        ("one writes", disk("d", false, true), disk("d", true, true), false),
        ("the other writes", disk("d", true, true), disk("d", false, true), false),
        ("a disk for one Pod", disk("d", true, false), disk("d", true, false), false),
        ("another disk", disk("d", false, false), disk("e", false, false), true),
    ];
    for (case, there, wants, expected) in cases {
        let got = restrictions(&wants, &state(node("n1", 1, 1), &[there]), site);
        assert_eq!(got.is_none(), expected, "{case}");
    }
}

#[test]
fn a_claim_for_one_pod_keeps_others_off_every_node_until_its_user_goes() {
    let mut snapshot = Snapshot::default();
    for name in ["n1", "n2"] {
        snapshot.set_node(node(name, 1000, 1000));
    }
    snapshot.facts_mut().change_volumes(|volumes| {
        let modes = vec!["ReadWriteOncePod".into()];
        let claim = ClaimFacts { bound: true, volume: Some("v".into()), access_modes: modes, ..Default::default() };
        volumes.claims.insert(key("alone"), claim);
        volumes.volumes.insert("v".into(), VolumeInfo { name: "v".into(), ..Default::default() });
    });
    snapshot.add_pod(pod("user", with_claims(&["alone"])), "n1");
    let mut core = Core::new(vec![Profile::default_for("default-scheduler")]);
    for (_, verdict) in core.evaluate(&pod("p", with_claims(&["alone"])), &snapshot) {
        let rejection = verdict.expect_err("the claim is in use");
        assert_eq!((rejection.plugin, rejection.resolvable), (Plugin::VolumeRestrictions, true));
    }
    snapshot.remove_pod("user");
    let fits = core.evaluate(&pod("p", with_claims(&["alone"])), &snapshot);
    assert!(fits.iter().all(|(_, verdict)| verdict.is_ok()));
}
