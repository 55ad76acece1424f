//! `/livez`, `/readyz` and `/healthz`, as a whole, verbose, and check by check (apiserver `pkg/server/healthz`).

use carob_api::Status;
use http::{Response, StatusCode};

use crate::body::Body;
use crate::error::ApiResult;
use crate::request::Query;
use crate::respond;
use crate::state::State;

/// A named fact about the server's health.
struct Check {
    name: &'static str,
    ok: bool,
}

fn checks(api: &State, endpoint: &str) -> Vec<Check> {
    let mut checks = vec![
        Check { name: "ping", ok: true },
        // Named as upstream names its store.
        Check { name: "etcd", ok: api.store.failure().is_none() },
    ];
    if endpoint == "readyz" {
        checks.push(Check { name: "shutdown", ok: !*api.closing().borrow() });
    }
    checks
}

/// `rest` names one check.
pub(crate) fn answer(api: &State, endpoint: &str, rest: &[&str], query: &Query) -> ApiResult<Response<Body>> {
    let checks = checks(api, endpoint);
    match rest {
        [] => Ok(all(endpoint, &checks, query)),
        [name] => {
            let check = checks.iter().find(|check| check.name == *name).ok_or_else(Status::path_not_found)?;
            if check.ok {
                return Ok(respond::text(StatusCode::OK, "ok"));
            }
            Ok(respond::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {name} failed: reason withheld\n"),
            ))
        }
        _ => Err(Status::path_not_found().into()),
    }
}

fn all(endpoint: &str, checks: &[Check], query: &Query) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut text = String::new();
    let mut failed = false;
    for check in checks {
        if excluded.contains(&check.name) {
            text += &format!("[+]{} excluded: ok\n", check.name);
        } else if check.ok {
            text += &format!("[+]{} ok\n", check.name);
        } else {
            failed = true;
            text += &format!("[-]{} failed: reason withheld\n", check.name);
        }
    }
    for name in excluded.iter().filter(|name| !checks.iter().any(|check| check.name == **name)) {
        text += &format!("warn: some health checks cannot be excluded: no matches for {name:?}\n");
    }
    if failed {
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{endpoint} check failed\n"));
    }
    if query.get("verbose").is_some() {
        return respond::text(StatusCode::OK, format!("{text}{endpoint} check passed\n"));
    }
    respond::text(StatusCode::OK, "ok")
}
