//! That every write passes admission, with its attributes.

use std::sync::{Arc, Mutex};

use carob_apiserver::admission::{Admission, Mutator, Validator};
use carob_apiserver::{Config, UserInfo};
use serde_json::{Value, json};

use crate::support::{Rig, config_map, pod};

/// Keeps a line per write that it is asked about, and refuses objects labelled `refuse`.
#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<String>>>,
    only: &'static str,
}

impl Recorder {
    fn new(only: &'static str) -> Self {
        Self { only, ..Self::default() }
    }

    fn install(&self, config: &mut Config) {
        config.mutators.push(Box::new(self.clone()));
        config.validators.push(Box::new(self.clone()));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().expect("no test panics with it"))
    }

    fn note(&self, stage: &str, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) {
        let kind_of =
            |object: Option<&Value>| object.and_then(|object| object["kind"].as_str()).unwrap_or("-").to_owned();
        let line = format!(
            "{stage} {} {}/{} {}/{} {} {}->{} {}{}",
            write.operation.as_str(),
            write.def.plural(),
            write.subresource,
            write.namespace,
            write.name,
            write.kind,
            kind_of(old),
            kind_of(object),
            write.options["kind"].as_str().unwrap_or("-"),
            if write.dry_run { " dry" } else { "" },
        );
        self.seen.lock().expect("no test panics with it").push(line);
    }
}

#[async_trait::async_trait]
impl Mutator for Recorder {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.def.plural() == self.only
    }

    async fn mutate(
        &self,
        write: &Admission<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), carob_api::Status> {
        self.note("mutate", write, (!object.is_null()).then_some(object), old);
        write.notes.warn("seen");
        Ok(())
    }
}

#[async_trait::async_trait]
impl Validator for Recorder {
    fn handles(&self, write: &Admission<'_>) -> bool {
        write.def.plural() == self.only
    }

    async fn validate(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<(), carob_api::Status> {
        self.note("validate", write, object, old);
        let refused = object.is_some_and(|object| object["metadata"]["labels"]["refuse"] == "yes");
        if refused { Err(write.forbidden(object, "it says so itself")) } else { Ok(()) }
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn every_verb_passes_both_chains() {
    let recorder = Recorder::new("configmaps");
    let rig = Rig::with(|config| recorder.install(config)).await;
    recorder.take();
    let both = |line: &str| vec![format!("mutate {line}"), format!("validate {line}")];

    rig.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(recorder.take(), both("CREATE configmaps/ default/a ConfigMap -->ConfigMap CreateOptions"));
    rig.post(&format!("{MAPS}?dryRun=All"), &config_map("b")).await.expect(201);
    assert_eq!(recorder.take(), both("CREATE configmaps/ default/b ConfigMap -->ConfigMap CreateOptions dry"));
    rig.put(&format!("{MAPS}/a"), &config_map("a")).await.expect(200);
    let update = both("UPDATE configmaps/ default/a ConfigMap ConfigMap->ConfigMap UpdateOptions");
    assert_eq!(recorder.take(), update);
    rig.patch(&format!("{MAPS}/a"), "merge-patch+json", &json!({ "data": { "x": "y" } })).await.expect(200);
    assert_eq!(recorder.take(), update);
    let applied = rig.patch(&format!("{MAPS}/c?fieldManager=m"), "apply-patch+yaml", &config_map("c")).await;
    assert_eq!(applied.warnings(), [r#"299 - "seen""#]);
    applied.expect(201);
    assert_eq!(recorder.take(), both("CREATE configmaps/ default/c ConfigMap -->ConfigMap CreateOptions"));
    rig.delete(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(recorder.take(), both("DELETE configmaps/ default/a ConfigMap ConfigMap->- DeleteOptions"));
    rig.delete(MAPS).await.expect(200);
    let of_collection = recorder.take();
    assert!(
        of_collection
            .contains(&"validate DELETE configmaps/ default/c ConfigMap ConfigMap->- DeleteOptions".to_owned())
    );
}

#[tokio::test]
async fn subresources_are_admitted_as_what_they_take() {
    let recorder = Recorder::new("pods");
    let rig = Rig::with(|config| recorder.install(config)).await;
    rig.post(PODS, &pod("p")).await.expect(201);
    recorder.take();
    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" } });
    rig.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let of_binding = "CREATE pods/binding default/p Binding -->Binding CreateOptions";
    assert_eq!(recorder.take(), [format!("mutate {of_binding}"), format!("validate {of_binding}")]);
    rig.patch(&format!("{PODS}/p/status"), "merge-patch+json", &json!({ "status": { "phase": "Running" } }))
        .await
        .expect(200);
    assert_eq!(recorder.take()[1], "validate UPDATE pods/status default/p Pod Pod->Pod UpdateOptions");
    // There is no such node, but the connection was admitted before it was tried.
    rig.post(&format!("{PODS}/p/exec?command=ls&stdout=true"), &Value::Null).await.expect(404);
    assert_eq!(recorder.take()[1], "validate CONNECT pods/exec default/p PodExecOptions -->PodExecOptions -");
    rig.post(&format!("{PODS}/p/eviction"), &json!({ "metadata": { "name": "p" } })).await.expect(201);
    let of_eviction = "CREATE pods/eviction default/p Eviction -->Eviction CreateOptions";
    assert_eq!(recorder.take(), [format!("mutate {of_eviction}"), format!("validate {of_eviction}")], "and no DELETE");
}

#[tokio::test]
async fn a_scale_is_admitted_as_one() {
    let recorder = Recorder::new("deployments");
    let rig = Rig::with(|config| recorder.install(config)).await;
    let labels = json!({ "app": "a" });
    let deployment = json!({
        "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod("x")["spec"] } },
    });
    const PATH: &str = "/apis/apps/v1/namespaces/default/deployments";
    rig.post(PATH, &deployment).await.expect(201);
    recorder.take();
    rig.patch(&format!("{PATH}/d/scale"), "merge-patch+json", &json!({ "spec": { "replicas": 3 } })).await.expect(200);
    let line = "UPDATE deployments/scale default/d Scale Scale->Scale UpdateOptions";
    assert_eq!(recorder.take(), [format!("mutate {line}"), format!("validate {line}")]);
}

#[tokio::test]
async fn warnings_come_with_refusals_too_and_a_review_is_admitted() {
    let recorder = Recorder::new("configmaps");
    let rig = Rig::with(|config| recorder.install(config)).await;
    let mut refused = config_map("a");
    refused["metadata"]["labels"] = json!({ "refuse": "yes" });
    let answer = rig.post(MAPS, &refused).await;
    assert_eq!(answer.warnings(), [r#"299 - "seen""#]);
    assert_eq!(answer.message(), "configmaps \"a\" is forbidden: it says so itself");
    answer.expect(403);
    let reviews = Recorder::new("selfsubjectaccessreviews");
    let rig = Rig::with(|config| reviews.install(config)).await.as_user(UserInfo::component("someone"));
    let review = json!({ "spec": { "nonResourceAttributes": { "path": "/version", "verb": "get" } } });
    rig.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await.expect(201);
    assert_eq!(reviews.take().len(), 2);
}

#[tokio::test]
async fn a_quota_counts_nothing_of_a_name_that_is_taken() {
    let rig = Rig::new().await;
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "count/configmaps": "5" } } });
    rig.post("/api/v1/namespaces/default/resourcequotas", &quota).await.expect(201);
    let status = json!({ "status": { "hard": { "count/configmaps": "5" }, "used": { "count/configmaps": "0" } } });
    rig.patch("/api/v1/namespaces/default/resourcequotas/q/status", "merge-patch+json", &status).await.expect(200);
    rig.post(MAPS, &config_map("a")).await.expect(201);
    rig.post(MAPS, &config_map("a")).await.expect(409);
    let quota = rig.get("/api/v1/namespaces/default/resourcequotas/q").await.expect(200);
    assert_eq!(quota["status"]["used"]["count/configmaps"], "1");
}
