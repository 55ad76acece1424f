//! The controllers against a real API server, in one process.

mod support;

use std::sync::Arc;
use std::time::Duration;

use carob_kit::Clock;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, ReplicationController, ResourceQuota, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use support::{Cluster, eventually, eventually_within, from, template};

fn ready(pods: &[Arc<Pod>], app: &str) -> usize {
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let ours = |pod: &Pod| pod.labels().get("app").is_some_and(|label| label == app);
    pods.iter().filter(|pod| ours(pod) && is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).count()
}

fn of_app(pods: &[Arc<Pod>], app: &str) -> usize {
    pods.iter().filter(|pod| pod.labels().get("app").is_some_and(|label| label == app)).count()
}

#[tokio::test]
async fn a_cluster_begins_with_what_every_cluster_has() {
    let cluster = Cluster::start().await;
    let services = cluster.of::<Service>();
    eventually(&services, "the API has a service", |_| {
        let service = services.get(Some("default"), "kubernetes");
        service.and_then(|service| service.spec.as_ref()?.cluster_ip.clone()).as_deref() == Some("10.96.0.1")
    })
    .await;
    let slices = cluster.of::<EndpointSlice>();
    eventually(&slices, "and endpoints", |_| slices.get(Some("default"), "kubernetes").is_some()).await;
    let maps = cluster.of::<ConfigMap>();
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let what = format!("{namespace} has the root certificate");
        eventually(&maps, &what, |_| maps.get(Some(namespace), "kube-root-ca.crt").is_some()).await;
    }
    let nodes = cluster.of::<Node>();
    eventually(&nodes, "the node has addresses and no taints", |_| {
        let spec = nodes.get(None, "n1").and_then(|node| node.spec.clone()).unwrap_or_default();
        spec.pod_cidr.as_deref() == Some("10.244.0.0/24") && spec.taints.unwrap_or_default().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_namespace_is_emptied_before_it_goes() {
    let cluster = Cluster::start().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace: Namespace = from(json!({"metadata": {"name": "team"}}));
    namespaces.create(&PostParams::default(), &namespace).await.expect("it is accepted");
    let maps = cluster.of::<ConfigMap>();
    eventually(&maps, "it is furnished", |_| maps.get(Some("team"), "kube-root-ca.crt").is_some()).await;
    let pod =
        json!({"metadata": {"name": "p", "namespace": "team"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let accounts = cluster.of::<k8s_openapi::api::core::v1::ServiceAccount>();
    eventually(&accounts, "it has an account", |_| accounts.get(Some("team"), "default").is_some()).await;
    cluster.create::<Pod>(pod).await;
    cluster.create::<ConfigMap>(json!({"metadata": {"name": "m", "namespace": "team"}})).await;
    namespaces.delete("team", &DeleteParams::default()).await.expect("it can be deleted");
    let all = cluster.of::<Namespace>();
    eventually(&all, "it is gone", |_| all.get(None, "team").is_none()).await;
    assert!(maps.list_in("team").is_empty() || namespaces.get_opt("team").await.expect("it answers").is_none());
}

#[tokio::test]
async fn a_deployment_rolls_out_and_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one")},
    });
    cluster.create::<Deployment>(web).await;
    let (deployments, sets, pods) = (cluster.of::<Deployment>(), cluster.of::<ReplicaSet>(), cluster.of::<Pod>());
    let complete = |image: &str| {
        let web = deployments.get(Some("default"), "web");
        let status = web.as_ref().and_then(|web| web.status.clone()).unwrap_or_default();
        let spec = web.as_ref().and_then(|web| web.spec.clone()).unwrap_or_default();
        let observed = web.is_some_and(|web| status.observed_generation == web.metadata.generation);
        let images = spec.template.spec.map(|spec| spec.containers[0].image.clone().unwrap_or_default());
        observed
            && images.as_deref() == Some(image)
            && status.updated_replicas == Some(3)
            && status.available_replicas == Some(3)
            && status.replicas == Some(3)
    };
    eventually(&deployments, "the first rollout", |_| complete("one")).await;
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "two"}]}}}});
    let api = cluster.api::<Deployment>();
    api.patch("web", &PatchParams::default(), &Patch::Strategic(patch)).await.expect("it can be patched");
    eventually(&deployments, "the second rollout", |_| complete("two")).await;
    eventually(&pods, "the old pods are gone", |pods| of_app(pods, "web") == 3).await;
    assert_eq!(sets.list().len(), 2);
    let web = deployments.get(Some("default"), "web").expect("it is there");
    assert_eq!(web.annotations().get("deployment.kubernetes.io/revision").map(String::as_str), Some("2"));

    api.delete("web", &DeleteParams::background()).await.expect("it can be deleted");
    eventually(&sets, "its sets are collected", |sets| sets.is_empty()).await;
    eventually(&pods, "its pods are collected", |pods| of_app(pods, "web") == 0).await;
}

/// A stray object that names a living owner's uid with another namespace or name once put that uid among the absent.
#[tokio::test]
async fn stray_references_to_an_owner_do_not_touch_what_it_owns() {
    let cluster = Cluster::start().await;
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one")},
    });
    let web = cluster.create::<Deployment>(web).await;
    let (sets, pods, maps) = (cluster.of::<ReplicaSet>(), cluster.of::<Pod>(), cluster.of::<ConfigMap>());
    eventually(&pods, "its pod runs", |pods| ready(pods, "web") == 1).await;
    let set = sets.list()[0].clone();

    let uid = web.metadata.uid.clone();
    let stray = |namespace: &str, name: &str, kind: &str, owner: &str| {
        let owner =
            json!({"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": uid, "blockOwnerDeletion": true});
        json!({"metadata": {"namespace": namespace, "name": name, "ownerReferences": [owner]}})
    };
    let strays = [
        stray("kube-public", "elsewhere", "Deployment", "web"),
        stray("default", "misnamed", "Deployment", "other"),
        stray("default", "miskinded", "StatefulSet", "web"),
    ];
    for stray in strays {
        cluster.create::<ConfigMap>(stray).await;
    }
    eventually(&maps, "the strays are collected", |maps| {
        !maps.iter().any(|map| ["elsewhere", "misnamed", "miskinded"].contains(&map.name_any().as_str()))
    })
    .await;
    let events = cluster.of::<Event>();
    eventually(&events, "the reference into another namespace is told", |events| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some("OwnerRefInvalidNamespace")
                && event.involved_object.name.as_deref() == Some("elsewhere")
        })
    })
    .await;

    // Each change of the set has the collector look at it, with the strays' owners among the absent.
    let api = cluster.api::<Deployment>();
    let scale = json!({"spec": {"replicas": 2}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(scale)).await.expect("it can be scaled");
    eventually(&pods, "two pods run", |pods| ready(pods, "web") == 2).await;
    let now = sets.list();
    assert_eq!(now.len(), 1);
    assert_eq!(now[0].metadata.uid, set.metadata.uid, "the set that was there is there");
    assert!(now[0].metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn an_owner_waits_for_its_dependents_or_frees_them() {
    let cluster = Cluster::start().await;
    let rc = |name: &str| json!({"metadata": {"name": name}, "spec": {"replicas": 2, "selector": {"app": name}, "template": template(name, "i")}});
    let (owners, pods) = (cluster.of::<ReplicationController>(), cluster.of::<Pod>());
    for name in ["waits", "frees"] {
        cluster.create::<ReplicationController>(rc(name)).await;
        eventually(&pods, "its pods run", |pods| ready(pods, name) == 2).await;
    }
    let api = cluster.api::<ReplicationController>();
    api.delete("waits", &DeleteParams::foreground()).await.expect("it can be deleted");
    eventually(&owners, "it goes", |_| owners.get(Some("default"), "waits").is_none()).await;
    let listed =
        cluster.api::<Pod>().list(&kube::api::ListParams::default().labels("app=waits")).await.expect("it answers");
    assert_eq!(listed.items.len(), 0, "after its pods");

    api.delete("frees", &DeleteParams::orphan()).await.expect("it can be deleted");
    eventually(&owners, "it goes", |_| owners.get(Some("default"), "frees").is_none()).await;
    let orphans = |pods: &[Arc<Pod>]| {
        pods.iter()
            .filter(|pod| {
                pod.labels().get("app").is_some_and(|app| app == "frees") && pod.owner_references().is_empty()
            })
            .count()
    };
    eventually(&pods, "its pods are on their own", |pods| orphans(pods) == 2).await;

    cluster.create::<ReplicationController>(rc("frees")).await;
    eventually(&pods, "a namesake adopts them", |pods| orphans(pods) == 0 && of_app(pods, "frees") == 2).await;
}

#[tokio::test]
async fn objects_that_own_each_other_in_a_circle_go_together() {
    let cluster = Cluster::start().await;
    let (maps, api) = (cluster.of::<ConfigMap>(), cluster.api::<ConfigMap>());
    // Who looks first is a matter of chance: each round has another order.
    for round in 0..8 {
        let name = |index: usize| format!("circle-{round}-{}", index % 3);
        let mut uids = Vec::new();
        for index in 0..3 {
            let made = cluster.create::<ConfigMap>(json!({"metadata": {"name": name(index)}})).await;
            uids.push(made.metadata.uid.expect("it has a uid"));
        }
        for index in 0..3 {
            let owner = (index + 1) % 3;
            let reference = json!([{
                "apiVersion": "v1", "kind": "ConfigMap", "name": name(owner), "uid": uids[owner], "blockOwnerDeletion": true,
            }]);
            let patch = Patch::Merge(json!({"metadata": {"ownerReferences": reference}}));
            api.patch(&name(index), &PatchParams::default(), &patch).await.expect("it can be patched");
        }
        api.delete(&name(0), &DeleteParams::foreground()).await.expect("it can be deleted");
        let prefix = format!("circle-{round}-");
        let left = |maps: &[Arc<ConfigMap>]| maps.iter().filter(|map| map.name_any().starts_with(&prefix)).count();
        eventually(&maps, "all of the circle go", |maps| left(maps) == 0).await;
    }
}

#[tokio::test]
async fn a_service_has_the_endpoints_of_its_pods() {
    let cluster = Cluster::start().await;
    let port = json!([{"port": 80, "targetPort": 8080}]);
    cluster
        .create::<Service>(json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": port}}))
        .await;
    let (slices, endpoints) = (cluster.of::<EndpointSlice>(), cluster.of::<Endpoints>());
    let count = |slices: &[Arc<EndpointSlice>]| {
        let own = slices
            .iter()
            .filter(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == "web"));
        own.map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect::<Vec<_>>()
    };
    eventually(&slices, "it begins with an empty slice", |slices| count(slices) == [0]).await;
    let rc = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"app": "web"}, "template": template("web", "i")}});
    cluster.create::<ReplicationController>(rc).await;
    eventually(&slices, "its pods are in one slice", |slices| count(slices) == [2]).await;
    eventually(&endpoints, "and in its endpoints", |_| {
        let subsets = endpoints.get(Some("default"), "web").and_then(|endpoints| endpoints.subsets.clone());
        let subset = subsets.unwrap_or_default().into_iter().next().unwrap_or_default();
        subset.addresses.unwrap_or_default().len() == 1
            || subset.ports.unwrap_or_default().first().is_some_and(|port| port.port == 8080)
    })
    .await;
}

#[tokio::test]
async fn a_job_counts_its_ends_and_finishes() {
    let cluster = Cluster::start().await;
    let job = |name: &str, image: &str, completions: i32| {
        let mut template = template(name, image);
        template["spec"]["restartPolicy"] = json!("Never");
        json!({"metadata": {"name": name}, "spec": {"completions": completions, "parallelism": 2, "backoffLimit": 0, "template": template}})
    };
    cluster.create::<Job>(job("good", "succeeds", 3)).await;
    cluster.create::<Job>(job("bad", "fails", 1)).await;
    let jobs = cluster.of::<Job>();
    let ended = |name: &str, kind: &str| {
        let status = jobs.get(Some("default"), name).and_then(|job| job.status.clone()).unwrap_or_default();
        status
            .conditions
            .unwrap_or_default()
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    };
    eventually(&jobs, "the good one completes", |_| ended("good", "Complete")).await;
    let status = jobs.get(Some("default"), "good").and_then(|job| job.status.clone()).unwrap_or_default();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(3), None, None));
    eventually(&jobs, "the bad one fails", |_| ended("bad", "Failed")).await;
    let pods = cluster.of::<Pod>();
    eventually(&pods, "no pod is held back", |pods| {
        pods.iter().all(|pod| pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty))
    })
    .await;
}

#[tokio::test]
async fn a_stateful_set_has_its_pods_in_order_and_updates_them_in_reverse() {
    let cluster = Cluster::start().await;
    let db = json!({
        "metadata": {"name": "db"},
        "spec": {"serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "one")},
    });
    cluster.create::<StatefulSet>(db).await;
    let (sets, pods) = (cluster.of::<StatefulSet>(), cluster.of::<Pod>());
    let complete = |revision: &str| {
        let status = sets.get(Some("default"), "db").and_then(|db| db.status.clone()).unwrap_or_default();
        let current = status.current_revision.clone().unwrap_or_default();
        status.ready_replicas == Some(2)
            && status.updated_replicas == Some(2)
            && current != revision
            && status.current_revision == status.update_revision
    };
    eventually(&sets, "both pods are ready", |_| complete("")).await;
    let created = |name: &str| pods.get(Some("default"), name).and_then(|pod| pod.metadata.creation_timestamp.clone());
    eventually(&pods, "the pods are known", |_| created("db-1").is_some()).await;
    assert!(created("db-0") <= created("db-1"));

    let first = sets.get(Some("default"), "db").and_then(|db| db.status.clone()?.current_revision).unwrap_or_default();
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "two"}]}}}});
    let api = cluster.api::<StatefulSet>();
    api.patch("db", &PatchParams::default(), &Patch::Strategic(patch)).await.expect("it can be patched");
    eventually(&sets, "the update is complete", |_| complete(&first)).await;
    let patch = json!({"spec": {"replicas": 0}});
    api.patch("db", &PatchParams::default(), &Patch::Merge(patch)).await.expect("it can be scaled");
    eventually(&pods, "the pods are gone", |pods| of_app(pods, "db") == 0).await;
}

#[tokio::test]
async fn a_daemon_runs_on_every_node_and_is_replaced_when_its_template_changes() {
    let cluster = Cluster::start().await;
    let agent = json!({
        "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", "one")},
    });
    cluster.create::<DaemonSet>(agent).await;
    let sets = cluster.of::<DaemonSet>();
    let complete = |generation: i64| {
        let status = sets.get(Some("default"), "agent").and_then(|agent| agent.status.clone()).unwrap_or_default();
        status.observed_generation == Some(generation)
            && status.number_available == Some(1)
            && status.updated_number_scheduled == Some(1)
    };
    eventually(&sets, "it runs", |_| complete(1)).await;
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "two"}]}}}});
    let api = cluster.api::<DaemonSet>();
    api.patch("agent", &PatchParams::default(), &Patch::Strategic(patch)).await.expect("it can be patched");
    eventually(&sets, "it was replaced", |_| complete(2)).await;
    let pods = cluster.of::<Pod>();
    eventually(&pods, "by a pod of the new template", |pods| {
        let images: Vec<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.containers[0].image.clone()).collect();
        images == ["two"]
    })
    .await;
}

#[tokio::test]
async fn a_cron_job_makes_jobs_and_keeps_few_of_them() {
    let cluster = Cluster::start().await;
    let mut template = template("tick", "succeeds");
    template["spec"]["restartPolicy"] = json!("Never");
    let tick = json!({
        "metadata": {"name": "tick"},
        "spec": {
            "schedule": "@every 1s", "successfulJobsHistoryLimit": 0,
            "jobTemplate": {"spec": {"template": template}},
        },
    });
    cluster.create::<CronJob>(tick).await;
    let (crons, jobs) = (cluster.of::<CronJob>(), cluster.of::<Job>());
    eventually(&crons, "one ended well", |_| {
        crons
            .get(Some("default"), "tick")
            .is_some_and(|cron| cron.status.as_ref().is_some_and(|status| status.last_successful_time.is_some()))
    })
    .await;
    eventually(&jobs, "and is not kept", |jobs| jobs.is_empty()).await;
}

#[tokio::test]
async fn a_budget_allows_what_its_pods_can_spare() {
    let cluster = Cluster::start().await;
    let budget = json!({
        "metadata": {"name": "web"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    });
    cluster.create::<PodDisruptionBudget>(budget).await;
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one")},
    });
    cluster.create::<Deployment>(web).await;
    let budgets = cluster.of::<PodDisruptionBudget>();
    let is = |expected: (i32, i32, i32)| {
        let status = budgets.get(Some("default"), "web").and_then(|budget| budget.status.clone()).unwrap_or_default();
        let counts = (status.expected_pods, status.desired_healthy.unwrap_or(0), status.disruptions_allowed);
        counts == (Some(expected.0), expected.1, Some(expected.2))
    };
    eventually(&budgets, "one of three may go", |_| is((3, 2, 1))).await;
    let api = cluster.api::<Deployment>();
    let patch = json!({"spec": {"replicas": 1}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.expect("it can be scaled");
    eventually(&budgets, "the only one may go", |_| is((1, 0, 1))).await;
}

#[tokio::test]
async fn a_quota_counts_what_is_used() {
    let cluster = Cluster::start().await;
    let hard = json!({
        "pods": "5", "requests.cpu": "1", "services": "3", "configmaps": "9", "count/replicationcontrollers": "4", "secrets": "2",
    });
    cluster.create::<ResourceQuota>(json!({"metadata": {"name": "all"}, "spec": {"hard": hard}})).await;
    let quotas = cluster.of::<ResourceQuota>();
    let used = || {
        let status = quotas.get(Some("default"), "all").and_then(|quota| quota.status.clone()).unwrap_or_default();
        status
            .used
            .into_iter()
            .flatten()
            .map(|(name, amount)| format!("{name}={}", amount.0))
            .collect::<Vec<_>>()
            .join(" ")
    };
    // The API's own service and the root certificate are there from the start.
    let empty = "configmaps=1 count/replicationcontrollers=0 pods=0 requests.cpu=0 secrets=0 services=1";
    eventually(&quotas, "it begins with little", |_| used() == empty).await;
    let mut template = template("web", "one");
    template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    let rc =
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"app": "web"}, "template": template}});
    cluster.create::<ReplicationController>(rc).await;
    cluster.create::<Secret>(json!({"metadata": {"name": "s"}})).await;
    let more = "configmaps=1 count/replicationcontrollers=1 pods=2 requests.cpu=200m secrets=1 services=1";
    eventually(&quotas, "and counts what is made", |_| used() == more).await;
    let api = cluster.api::<ReplicationController>();
    api.delete("web", &DeleteParams::background()).await.expect("it can be deleted");
    let less = "configmaps=1 count/replicationcontrollers=0 pods=0 requests.cpu=0 secrets=1 services=1";
    eventually(&quotas, "and what goes", |_| used() == less).await;
}

#[tokio::test]
async fn a_job_that_is_deleted_lets_its_pods_go() {
    let cluster = Cluster::start().await;
    let (jobs, pods) = (cluster.of::<Job>(), cluster.of::<Pod>());
    for (name, params) in [("first", DeleteParams::foreground()), ("last", DeleteParams::background())] {
        let mut template = template(name, "runs");
        template["spec"]["restartPolicy"] = json!("Never");
        let job =
            json!({"metadata": {"name": name}, "spec": {"parallelism": 2, "completions": 2, "template": template}});
        cluster.create::<Job>(job).await;
        eventually(&pods, "its pods run", |pods| ready(pods, name) == 2).await;
        cluster.api::<Job>().delete(name, &params).await.expect("it can be deleted");
        eventually(&jobs, "the job goes", |_| jobs.get(Some("default"), name).is_none()).await;
        eventually(&pods, "and its pods", |pods| of_app(pods, name) == 0).await;
    }
}

#[tokio::test]
async fn a_suspended_job_stops_and_goes_on() {
    let cluster = Cluster::start().await;
    let mut template = template("pauses", "runs");
    template["spec"]["restartPolicy"] = json!("Never");
    let job =
        json!({"metadata": {"name": "pauses"}, "spec": {"parallelism": 2, "completions": 4, "template": template}});
    cluster.create::<Job>(job).await;
    let (jobs, pods) = (cluster.of::<Job>(), cluster.of::<Pod>());
    eventually(&pods, "it runs", |pods| ready(pods, "pauses") == 2).await;
    let suspend = async |suspend: bool| {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        cluster.api::<Job>().patch("pauses", &PatchParams::default(), &patch).await.expect("it can be patched");
    };
    let status = || jobs.get(Some("default"), "pauses").and_then(|job| job.status.clone()).unwrap_or_default();
    let suspended = |value: &str| {
        status()
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Suspended" && condition.status == value)
    };
    suspend(true).await;
    eventually(&pods, "its pods go", |pods| of_app(pods, "pauses") == 0).await;
    eventually(&jobs, "it says so", |_| suspended("True") && status().start_time.is_none()).await;
    assert_eq!(status().failed, None, "what we stopped did not fail");
    suspend(false).await;
    eventually(&pods, "it runs again", |pods| ready(pods, "pauses") == 2).await;
    eventually(&jobs, "it says so", |_| suspended("False") && status().start_time.is_some()).await;
}

/// A clock that goes with tokio's paused time.
#[derive(Debug)]
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH.checked_add(self.0.elapsed()).expect("within the calendar")
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

fn taints(nodes: &[Arc<Node>], name: &str) -> Vec<String> {
    let node = nodes.iter().find(|node| node.name_any() == name);
    let taints = node.and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default();
    taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_is_tainted_and_loses_its_pods_in_time() {
    let began = tokio::time::Instant::now();
    let cluster = Cluster::start_with(Arc::new(TokioClock(began))).await;
    cluster.add_node("n2").await;
    let client = cluster.client.clone();
    // The second node lives on.
    tokio::spawn(async move {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client, "kube-node-lease");
        for beat in 0.. {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let renewed = Timestamp::from_second(beat).expect("within the calendar").to_string();
            let patch = Patch::Merge(json!({"spec": {"renewTime": renewed}}));
            leases.patch("n2", &PatchParams::default(), &patch).await.expect("it can be renewed");
        }
    });
    let pod = json!({"metadata": {"name": "p", "labels": {"app": "p"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.create::<Pod>(pod).await;
    let (nodes, pods) = (cluster.of::<Node>(), cluster.of::<Pod>());
    eventually(&pods, "it runs", |pods| ready(pods, "p") == 1).await;
    let unreachable = ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
    eventually_within(&nodes, Duration::from_secs(90), "the silent node is tainted", |nodes| {
        taints(nodes, "n1") == unreachable
    })
    .await;
    assert_eq!(taints(&nodes.list(), "n2"), Vec::<String>::new());
    eventually(&pods, "its pod is not ready", |pods| ready(pods, "p") == 0).await;
    // The tolerations that admission gives a pod last five minutes.
    eventually_within(&pods, Duration::from_secs(400), "its pod is evicted", |pods| of_app(pods, "p") == 0).await;
    assert!(began.elapsed() >= Duration::from_secs(350), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let cluster = Cluster::start().await;
    cluster.create::<ServiceAccount>(json!({"metadata": {"name": "robot"}})).await;
    let annotations = json!({"kubernetes.io/service-account.name": "robot"});
    let secret = json!({
        "metadata": {"name": "robot-token", "annotations": annotations},
        "type": "kubernetes.io/service-account-token",
    });
    cluster.create::<Secret>(secret).await;
    let secrets = cluster.of::<Secret>();
    let data = |key: &str| {
        let data =
            secrets.get(Some("default"), "robot-token").and_then(|secret| secret.data.clone()).unwrap_or_default();
        data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned())
    };
    let token = Some("system:serviceaccount:default:robot".to_owned());
    eventually(&secrets, "it is filled", |_| data("token") == token && data("ca.crt").is_some()).await;
    assert_eq!(data("namespace").as_deref(), Some("default"));
    cluster.api::<ServiceAccount>().delete("robot", &DeleteParams::default()).await.expect("it can be deleted");
    eventually(&secrets, "it goes with its account", |_| secrets.get(Some("default"), "robot-token").is_none()).await;
}
