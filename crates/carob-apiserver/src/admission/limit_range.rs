//! LimitRanger: what Pods and claims may ask for at least and at most, and what they get if they do not say
//! (plugin/pkg/admission/limitranger).

use async_trait::async_trait;
use carob_api::pod::value::{self, amounts_at};
use carob_api::quota::Amounts;
use carob_api::status::GroupResource;
use carob_api::{Quantity, Status, meta};
use serde_json::Value;

use super::reader::Reader;
use super::{Admission, Mutator, Operation, Validator, is_new_pod};

/// Says on the Pod what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// The lists of containers that limits are about, and what the annotation calls one.
const CONTAINERS: [(&str, &str); 2] = [("containers", "container"), ("initContainers", "init container")];

pub(super) struct LimitRanger {
    pub(super) reader: Reader,
}

#[async_trait]
impl Mutator for LimitRanger {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new_pod(write)
    }

    async fn mutate(&self, write: &Admission<'_>, pod: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        for range in self.reader.within("", "limitranges", write.namespace) {
            let given = give(pod, &range);
            if !given.is_empty() {
                let words = format!("LimitRanger plugin set: {}", given.join("; "));
                meta::map_mut(pod, &["metadata", "annotations"]).insert(ANNOTATION.to_owned(), words.into());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Validator for LimitRanger {
    fn handles(&self, write: &Admission<'_>) -> bool {
        let is_claim = write.def.group().is_empty() && write.def.plural() == "persistentvolumeclaims";
        let writes = matches!(write.operation, Operation::Create | Operation::Update);
        // What a Pod's containers ask for is changed by resizing it alone.
        let is_resize = write.def.group().is_empty() && write.def.plural() == "pods" && write.subresource == "resize";
        is_new_pod(write) && write.subresource.is_empty()
            || writes && (is_resize || is_claim && write.subresource.is_empty())
    }

    async fn validate(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        for range in self.reader.within("", "limitranges", write.namespace) {
            let problems = if write.def.plural() == "pods" {
                pod_problems(object, &range)
            } else {
                claim_problems(object, &range)
            };
            let why = match problems.as_slice() {
                [] => continue,
                [one] => one.clone(),
                several => format!("[{}]", several.join(", ")),
            };
            return Err(Status::forbidden(GroupResource::new("", write.def.plural()), write.name, &why));
        }
        Ok(())
    }
}

fn limits<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let of_kind = move |limit: &&Value| meta::str_at(limit, &["type"]) == Some(kind);
    meta::items_at(range, &["spec", "limits"]).iter().filter(of_kind)
}

/// Gives containers the amounts that they do not name. Answers what was given, in the annotation's words.
fn give(pod: &mut Value, range: &Value) -> Vec<String> {
    let defaults = |field: &str| -> Vec<(String, Value)> {
        let maps = limits(range, "Container").filter_map(|limit| meta::at(limit, &[field])?.as_object());
        maps.flatten().map(|(name, amount)| (name.clone(), amount.clone())).collect()
    };
    let wanted = [("requests", "request", defaults("defaultRequest")), ("limits", "limit", defaults("default"))];
    let mut words = Vec::new();
    for (list, called) in CONTAINERS {
        let containers = meta::at_mut(pod, &["spec", list]).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (field, word, amounts) in &wanted {
                let mut missing = amounts.clone();
                missing.retain(|(name, _)| meta::at(container, &["resources", field, name]).is_none());
                if missing.is_empty() {
                    continue;
                }
                let mut names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                let name = meta::str_at(container, &["name"]).unwrap_or_default();
                words.push(format!("{} {word} for {called} {name}", names.join(", ")));
                meta::map_mut(container, &["resources", field]).extend(missing);
            }
        }
    }
    words
}

fn pod_problems(pod: &Value, range: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for limit in limits(range, "Container") {
        for container in CONTAINERS.iter().flat_map(|(list, _)| meta::items_at(pod, &["spec", list])) {
            let amounts = |which: &str| amounts_at(container, &["resources", which]);
            check(limit, "Container", &amounts("requests"), &amounts("limits"), &mut problems);
        }
    }
    for limit in limits(range, "Pod") {
        check(limit, "Pod", &value::requests(pod), &value::limits(pod), &mut problems);
    }
    problems
}

fn check(limit: &Value, kind: &str, requests: &Amounts, allowed: &Amounts, problems: &mut Vec<String>) {
    for (name, least) in amounts_at(limit, &["min"]) {
        let bound = format!("minimum {name} usage per {kind} is {least}");
        problems.extend(match (requests.get(&name), allowed.get(&name)) {
            (None, _) => Some(format!("{bound}.  No request is specified")),
            (Some(request), _) if *request < least => Some(format!("{bound}, but request is {request}")),
            (_, Some(allowed)) if *allowed < least => Some(format!("{bound}, but limit is {allowed}")),
            _ => None,
        });
    }
    for (name, most) in amounts_at(limit, &["max"]) {
        let bound = format!("maximum {name} usage per {kind} is {most}");
        problems.extend(match (requests.get(&name), allowed.get(&name)) {
            (_, None) => Some(format!("{bound}.  No limit is specified")),
            (_, Some(allowed)) if *allowed > most => Some(format!("{bound}, but limit is {allowed}")),
            (Some(request), _) if *request > most => Some(format!("{bound}, but request is {request}")),
            _ => None,
        });
    }
    for (name, most) in amounts_at(limit, &["maxLimitRequestRatio"]) {
        let bound = format!("{name} max limit to request ratio per {kind} is {most}");
        let asked = |amounts: &Amounts| amounts.get(&name).filter(|amount| !amount.is_zero()).copied();
        problems.extend(match (asked(requests), asked(allowed)) {
            (None, _) => Some(format!("{bound}, but no request is specified or request is 0")),
            (_, None) => Some(format!("{bound}, but no limit is specified or limit is 0")),
            (Some(request), Some(allowed)) if is_over(allowed, request, most) => {
                Some(format!("{bound}, but provided ratio is {:.6}", ratio(allowed, request)))
            }
            _ => None,
        });
    }
}

/// Whether `limit / request > most`, exactly.
fn is_over(limit: Quantity, request: Quantity, most: Quantity) -> bool {
    /// Nanos in one.
    const UNIT: i128 = 1_000_000_000;
    limit.nanos().saturating_mul(UNIT) > request.nanos().saturating_mul(most.nanos())
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with six digits, as upstream shows it")]
fn ratio(limit: Quantity, request: Quantity) -> f64 {
    limit.nanos() as f64 / request.nanos() as f64
}

fn claim_problems(claim: &Value, range: &Value) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = amounts_at(claim, &["spec", "resources", "requests"]);
    let mut problems = Vec::new();
    for limit in limits(range, KIND) {
        for (field, word, is_beyond) in [
            ("min", "minimum", Quantity::lt as fn(&Quantity, &Quantity) -> bool),
            ("max", "maximum", Quantity::gt as fn(&Quantity, &Quantity) -> bool),
        ] {
            for (name, bound) in amounts_at(limit, &[field]) {
                let words = format!("{word} {name} usage per {KIND} is {bound}");
                problems.extend(match requests.get(&name) {
                    None => Some(format!("{words}.  No request is specified")),
                    Some(request) if is_beyond(request, &bound) => Some(format!("{words}, but request is {request}")),
                    Some(_) => None,
                });
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(limit: Value) -> Value {
        json!({"spec": {"limits": [limit]}})
    }

    #[test]
    fn containers_get_what_they_do_not_name() {
        let range = range(json!({
            "type": "Container", "default": {"cpu": "300m", "memory": "200Mi"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"},
        }));
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1"}}}],
        }});
        let words = give(&mut pod, &range);
        assert_eq!(
            words,
            [
                "cpu, memory request for container a",
                "cpu, memory limit for container a",
                "memory limit for container b",
                "memory request for init container i",
            ]
        );
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"cpu": "300m", "memory": "200Mi"}})
        );
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"], json!({"cpu": "2", "memory": "200Mi"}));
        assert!(give(&mut pod, &range).is_empty());
    }

    #[test]
    fn a_pod_stays_within_its_limits() {
        let pod = |requests: Value, limits: Value| json!({"spec": {"containers": [{"name": "a", "resources": {"requests": requests, "limits": limits}}]}});
        let cases = [
            (json!({"type": "Container", "min": {"cpu": "50m"}}), pod(json!({"cpu": "50m"}), json!({})), ""),
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                pod(json!({"cpu": "49m"}), json!({})),
                "minimum cpu usage per Container is 50m, but request is 49m",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "50m"}}),
                pod(json!({}), json!({})),
                "minimum cpu usage per Container is 50m.  No request is specified",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                pod(json!({"cpu": "1"}), json!({})),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                pod(json!({"cpu": "1"}), json!({"cpu": "1500m"})),
                "maximum cpu usage per Container is 1, but limit is 1500m",
            ),
            (json!({"type": "Pod", "max": {"cpu": "1"}}), pod(json!({"cpu": "1"}), json!({"cpu": "1"})), ""),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"cpu": "1"}), json!({"cpu": "2"})),
                "",
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"cpu": "1"}), json!({"cpu": "2500m"})),
                "cpu max limit to request ratio per Pod is 2, but provided ratio is 2.500000",
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({}), json!({"cpu": "1"})),
                "cpu max limit to request ratio per Pod is 2, but no request is specified or request is 0",
            ),
        ];
        for (limit, pod, expected) in cases {
            assert_eq!(pod_problems(&pod, &range(limit.clone())).join("|"), expected, "{limit} {pod}");
        }
    }

    #[test]
    fn a_claim_is_neither_too_small_nor_too_large() {
        let range =
            range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert!(claim_problems(&claim("1Gi"), &range).is_empty());
        assert_eq!(
            claim_problems(&claim("3Gi"), &range),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(
            claim_problems(&claim("1Mi"), &range),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"]
        );
    }
}
