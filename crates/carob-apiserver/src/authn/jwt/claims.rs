//! From the claims of a verified token to a user (apiserver `plugin/pkg/authenticator/token/oidc`). Pure; errors are upstream's words.

use std::collections::BTreeMap;

use carob_cel::{Activation, BUDGET_COST_MAX, Budget, Program, Value as CelValue};
use serde_json::{Map, Value, json};

use super::config::{CLAIMS, CLAIMS_TYPE, IssuerConfig, Rule, Source, USER, USER_TYPE};
use crate::identity::{GROUP_AUTHENTICATED, UserInfo};

/// A token counts from a minute before it says so (go-oidc, `Verify`).
const NOT_BEFORE_LEEWAY_S: f64 = 60.0;
/// Where a claim says that another server has to be asked for it (OpenID Connect Core 1.0, section 5.6.2).
const CLAIM_NAMES: &str = "_claim_names";

/// The user that the claims describe.
pub(super) fn user_of(issuer: &IssuerConfig, claims: &Map<String, Value>, now_s: i64) -> Result<UserInfo, String> {
    check_times(claims, now_s)?;
    check_audience(issuer, claims)?;
    let claims = Claims { names: claims, whole: Value::Object(claims.clone()) };
    let mut user = UserInfo { name: username(issuer, &claims)?, ..UserInfo::default() };
    user.groups = groups(issuer, &claims)?;
    user.uid = uid(issuer, &claims)?;
    user.extra = extra(issuer, &claims)?;
    for (claim, wanted) in &issuer.required_claims {
        let value = claims.names.get(claim);
        let value = value.ok_or_else(|| format!("required claim {claim} not present in ID token"))?;
        let got = value.as_str().ok_or_else(|| format!("parse claim {claim}: it is no string"))?;
        if got != wanted {
            return Err(format!("required claim {claim} value does not match. Got = {got}, want = {wanted}"));
        }
    }
    check_rules(&issuer.claim_rules, CLAIMS, &claims.whole)
        .map_err(|why| format!("error evaluating claim validation expression: {why}"))?;
    let shown = json!({ "username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra });
    check_rules(&issuer.user_rules, USER, &shown)
        .map_err(|why| format!("error evaluating user info validation rule: {why}"))?;
    if !user.groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
        user.groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    Ok(user)
}

struct Claims<'c> {
    names: &'c Map<String, Value>,
    /// The same as one value, for expressions.
    whole: Value,
}

impl Claims<'_> {
    fn text(&self, claim: &str) -> Result<&str, String> {
        let value = self.names.get(claim).ok_or("claim not present")?;
        value.as_str().ok_or_else(|| "it is no string".to_owned())
    }
}

/// `exp` is needed; `nbf` may be there. Both are numbers of seconds since the epoch, which may have a fraction (RFC 7519, section 2).
fn check_times(claims: &Map<String, Value>, now_s: i64) -> Result<(), String> {
    let time = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("verify token: {name:?} is no time")),
    };
    let now_s = now_s as f64;
    match time("exp")? {
        Some(end_s) if now_s <= end_s => {}
        Some(_) => return Err("verify token: oidc: token is expired".to_owned()),
        None => return Err("verify token: oidc: token has no expiry".to_owned()),
    }
    match time("nbf")? {
        Some(begin_s) if now_s + NOT_BEFORE_LEEWAY_S < begin_s => {
            Err("verify token: oidc: current time is before the nbf (not before) time".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_audience(issuer: &IssuerConfig, claims: &Map<String, Value>) -> Result<(), String> {
    let named =
        claims.get("aud").map(strings).transpose().map_err(|()| "verify token: \"aud\" is no list of strings")?;
    let named = named.unwrap_or_default();
    if named.iter().any(|one| issuer.audiences.contains(one)) {
        return Ok(());
    }
    Err(format!("verify token: oidc: expected audience in {:?} got {named:?}", issuer.audiences))
}

/// A string, or a list of strings.
fn strings(value: &Value) -> Result<Vec<String>, ()> {
    match value {
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|one| one.as_str().map(str::to_owned).ok_or(())).collect(),
        _ => Err(()),
    }
}

fn username(issuer: &IssuerConfig, claims: &Claims<'_>) -> Result<String, String> {
    match &issuer.username {
        Source::Expression(program) => {
            let name = evaluate_text(program, "username", &claims.whole)?;
            if name.is_empty() { Err("empty username via CEL expression is not allowed".to_owned()) } else { Ok(name) }
        }
        Source::Claim { claim, prefix } => {
            let name = claims.text(claim).map_err(|why| format!("parse username claims {claim:?}: {why}"))?;
            if claim == "email" {
                match claims.names.get("email_verified") {
                    None | Some(Value::Bool(true)) => {}
                    Some(Value::Bool(false)) => return Err("email not verified".to_owned()),
                    Some(_) => return Err("parse 'email_verified' claim: it is no boolean".to_owned()),
                }
            }
            Ok(format!("{prefix}{name}"))
        }
    }
}

fn groups(issuer: &IssuerConfig, claims: &Claims<'_>) -> Result<Vec<String>, String> {
    match &issuer.groups {
        None => Ok(Vec::new()),
        Some(Source::Expression(program)) => evaluate_list(program, &claims.whole)
            .map_err(|why| format!("error evaluating group claim expression: {why}")),
        Some(Source::Claim { claim, prefix }) => match claims.names.get(claim) {
            Some(value) => {
                let found =
                    strings(value).map_err(|()| format!("parse groups claim {claim:?}: it is no list of strings"))?;
                Ok(found.into_iter().map(|group| format!("{prefix}{group}")).collect())
            }
            // Leaving it out would let a user act without a group that a rule may exclude.
            None if claims.names.get(CLAIM_NAMES).is_some_and(|names| !names[claim.as_str()].is_null()) => {
                Err(format!("the claim {claim:?} is kept by another server, which is not asked"))
            }
            None => Ok(Vec::new()),
        },
    }
}

fn uid(issuer: &IssuerConfig, claims: &Claims<'_>) -> Result<String, String> {
    match &issuer.uid {
        None => Ok(String::new()),
        Some(Source::Claim { claim, .. }) => {
            claims.text(claim).map(str::to_owned).map_err(|why| format!("parse uid claim {claim:?}: {why}"))
        }
        Some(Source::Expression(program)) => evaluate_text(program, "uid", &claims.whole),
    }
}

fn extra(issuer: &IssuerConfig, claims: &Claims<'_>) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut extra = BTreeMap::new();
    if let Ok(id) = claims.text("jti")
        && !id.is_empty()
    {
        extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
    }
    for (key, program) in &issuer.extra {
        let values = evaluate_list(program, &claims.whole)
            .map_err(|why| format!("error evaluating extra claim expression: {}: {why}", program.source()))?;
        if !values.is_empty() {
            extra.insert(key.clone(), values);
        }
    }
    Ok(extra)
}

/// What an expression makes of a variable.
fn evaluate<'a>(program: &Program, variable: &'a str, value: &'a Value) -> Result<CelValue<'a>, String> {
    let decl = if variable == USER { &*USER_TYPE } else { &*CLAIMS_TYPE };
    let activation = Activation::new().json(variable, value, Some(decl));
    program.evaluate(&activation, &mut Budget::new(BUDGET_COST_MAX)).map_err(|error| error.to_string())
}

/// A string; `what` it is for is told where it is none.
fn evaluate_text(program: &Program, what: &str, claims: &Value) -> Result<String, String> {
    let value = evaluate(program, CLAIMS, claims).and_then(|value| {
        value.as_text().map(str::to_owned).ok_or_else(|| format!("{what} claim expression must return a string"))
    });
    value.map_err(|why| format!("error evaluating {what} claim expression: {why}"))
}

/// A string or a list of strings; what is empty or null is not there.
fn evaluate_list(program: &Program, claims: &Value) -> Result<Vec<String>, String> {
    const KIND: &str = "expression must return a string or a list of strings";
    let value = evaluate(program, CLAIMS, claims)?;
    let mut found = Vec::new();
    match &value {
        CelValue::Null => {}
        CelValue::String(text) => found.push(text.to_string()),
        list => {
            for item in list.items().ok_or(KIND)? {
                let item = item.map_err(|error| error.to_string())?;
                found.push(item.as_text().ok_or(KIND)?.to_owned());
            }
        }
    }
    found.retain(|text| !text.is_empty());
    Ok(found)
}

fn check_rules(rules: &[Rule], variable: &str, value: &Value) -> Result<(), String> {
    for rule in rules {
        match evaluate(&rule.program, variable, value)?.as_bool() {
            Some(true) => {}
            Some(false) => {
                return Err(format!("validation expression '{}' failed: {}", rule.program.source(), rule.message));
            }
            None => return Err("validation expression must return a boolean".to_owned()),
        }
    }
    Ok(())
}
