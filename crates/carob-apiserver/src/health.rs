//! `/livez`, `/readyz` and `/healthz`, as a whole, verbose, and check by check (apiserver `pkg/server/healthz`).

use carob_api::Status;
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
    // Named as upstream names its store.
    let mut checks = vec![Check::new("ping", None), Check::new("etcd", failure)];
    if endpoint == "readyz" {
        // The objects that the server makes itself, under the name of upstream's check of RBAC's.
        let missing = (!api.is_bootstrapped()).then(|| "the API server's own objects are not complete".to_owned());
        checks.push(Check::new("poststarthook/rbac/bootstrap-roles", missing));
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
