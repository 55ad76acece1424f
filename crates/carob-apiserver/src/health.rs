//! `/livez`, `/readyz` and `/healthz`, as a whole, verbose, and check by check (apiserver `pkg/server/healthz`).

use carob_api::Status;
use carob_kit::metrics::{Exposition, Kind};
use carob_kit::{PartState, chain};
use http::{Response, StatusCode};

use crate::body::Body;
use crate::error::ApiResult;
use crate::identity::{USER_ANONYMOUS, UserInfo};
use crate::request::Query;
use crate::respond;
use crate::state::State;

/// A named fact about the server's health.
struct Check {
    name: String,
    /// What is wrong.
    problem: Option<String>,
}

impl Check {
    fn new(name: &str, problem: Option<String>) -> Self {
        Self { name: name.to_owned(), problem }
    }
}

/// Upstream's names for what holds here as soon as a request is answered: `ApiServer::new` reads the definitions, and the
/// addresses of Services, before that, and what upstream keeps in informers is read from the store's index.
const WITH_THE_FIRST_ANSWER: [&str; 11] = [
    "ping",
    "log",
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/storage-readiness",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-openapi-controller",
];
/// Upstream's names for what is made of the objects that the server makes itself.
const WITH_OWN_OBJECTS: [&str; 10] = [
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
];

/// How much is told to whom: a reason may name files and objects, so it is for those who are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    Reasons,
    Withheld,
}

impl Detail {
    pub(crate) fn of(user: &UserInfo) -> Self {
        if user.name == USER_ANONYMOUS { Self::Withheld } else { Self::Reasons }
    }

    fn reason(self, problem: &str) -> &str {
        match self {
            Self::Reasons => problem,
            Self::Withheld => "reason withheld",
        }
    }
}

fn checks(api: &State, endpoint: &str) -> Vec<Check> {
    let unreachable = || api.store.unreachable().map(|error| chain(&*error).to_string());
    let failure = api.store.failure().map(|error| format!("the store takes no more writes: {}", chain(&*error)));
    let failure = failure.or_else(unreachable);
    let mut checks: Vec<Check> = WITH_THE_FIRST_ANSWER.iter().map(|name| Check::new(name, None)).collect();
    // Named as upstream names its store.
    checks.insert(1, Check::new("etcd", failure));
    let missing = (!api.is_bootstrapped()).then(|| "the API server's own objects are not complete".to_owned());
    checks.extend(WITH_OWN_OBJECTS.iter().map(|name| Check::new(name, missing.clone())));
    if endpoint == "readyz" {
        checks.push(Check::new("informer-sync", None));
        let full = api.store.full().map(|error| format!("writes are refused: {}", chain(&*error)));
        checks.push(Check::new("store-writes", full));
        let closing = *api.closing().borrow();
        checks.push(Check::new("shutdown", closing.then(|| "process is shutting down".to_owned())));
        checks.extend(api.health.parts().into_iter().map(|part| {
            let problem = (part.state != PartState::Ready).then(|| part.state.to_string());
            Check::new(&format!("part/{}", part.name), problem)
        }));
    }
    checks
}

/// Every check as a figure, for `/metrics/slis` (component-base `metrics/prometheus/slis`).
pub(crate) fn indicators(api: &State) -> String {
    let mut out = Exposition::default();
    let help = "[STABLE] This metric records the result of a single healthcheck.";
    let family = out.family("kubernetes_healthcheck", Kind::Gauge, help);
    for endpoint in ["healthz", "livez", "readyz"] {
        for Check { name, problem } in checks(api, endpoint) {
            family.sample(&[("name", &name), ("type", endpoint)], u8::from(problem.is_none()));
        }
    }
    out.into_text()
}

/// `rest` names one check.
pub(crate) fn answer(
    api: &State,
    endpoint: &str,
    rest: &[&str],
    query: &Query,
    detail: Detail,
) -> ApiResult<Response<Body>> {
    let checks = checks(api, endpoint);
    if rest.is_empty() {
        let remarks = if endpoint == "readyz" && detail == Detail::Reasons { api.health.remarks() } else { Vec::new() };
        return Ok(all(endpoint, &checks, &remarks, query, detail));
    }
    let name = rest.join("/");
    let check = checks.iter().find(|check| check.name == name).ok_or_else(Status::path_not_found)?;
    Ok(match &check.problem {
        None => respond::text(StatusCode::OK, "ok"),
        Some(problem) => respond::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("internal server error: {name} failed: {}\n", detail.reason(problem)),
        ),
    })
}

fn all(endpoint: &str, checks: &[Check], remarks: &[String], query: &Query, detail: Detail) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut text = String::new();
    let mut failed = false;
    for Check { name, problem } in checks {
        match problem {
            _ if excluded.contains(&name.as_str()) => text += &format!("[+]{name} excluded: ok\n"),
            None => text += &format!("[+]{name} ok\n"),
            Some(problem) => {
                failed = true;
                text += &format!("[-]{name} failed: {}\n", detail.reason(problem));
            }
        }
    }
    for name in excluded.iter().filter(|name| !checks.iter().any(|check| check.name == **name)) {
        text += &format!("warn: some health checks cannot be excluded: no matches for {name:?}\n");
    }
    for remark in remarks {
        text += &format!("warn: {remark}\n");
    }
    if failed {
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{endpoint} check failed\n"));
    }
    if query.get("verbose").is_some() {
        return respond::text(StatusCode::OK, format!("{text}{endpoint} check passed\n"));
    }
    respond::text(StatusCode::OK, "ok")
}
