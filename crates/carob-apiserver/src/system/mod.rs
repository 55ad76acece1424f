//! What the API server owns it makes itself, whatever other parts run: the system's namespaces, the Service of the API and
//! its endpoints, priority classes, RBAC's defaults, flow control, what other API servers need for authentication, and the
//! Lease that says who this is (pkg/controlplane, pkg/registry/{rbac,scheduling,flowcontrol}/rest).
//!
//! All of it is made over the API like everything else, so that all its rules hold. [`ApiServer::bootstrap`] puts it right
//! once; [`ApiServer::keep_system`] keeps right what upstream's API server keeps right all the time.

mod addresses;
mod correct;
mod dangling;
mod flow;
mod objects;
mod peers;
mod snapshots;

use std::time::Duration;

use bytes::Bytes;
use carob_api::meta;
use carob_store::{Store, Watch, WatchItem};
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::ApiServer;
use crate::identity::UserInfo;
use correct::{Correction, correct};
pub(crate) use objects::SERVICE as DEFAULT_SERVICE_CIDR;
pub use objects::{Joining, SystemConfig};
use objects::{Keep, SystemObject};

/// Objects that are made at once, so that they share commits of the store.
const AT_ONCE_MAX: usize = 32;
/// Tries of one correction that others overtake.
const ATTEMPTS_MAX: usize = 5;
/// Pauses after a failure: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The shortest time between two corrections of one object, should someone change it back each time.
const CORRECTION_PAUSE: Duration = Duration::from_secs(1);
/// How often the identity Lease is renewed. It counts for an hour ([`objects::LEASE_DURATION_S`]), and every renewal is a
/// write, so not every 10 seconds as upstream has it.
const LEASE_RENEWAL: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    #[error("{what} at start: {status} {message}")]
    Refused { what: String, status: StatusCode, message: String },
    #[error("{what} at start: the request could not be built")]
    Request {
        what: String,
        #[source]
        source: http::Error,
    },
    #[error("{what} at start: the answer is no JSON")]
    Answer {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what} at start: others changed it again and again")]
    Overtaken { what: String },
}

impl ApiServer {
    /// Makes what is missing and puts right what is not as it has to be. Everything is tried; the error is the first.
    pub async fn bootstrap(&self) -> Result<(), SystemError> {
        let now = self.now();
        let all = self.own_objects(now);
        // What lives in a namespace needs it first.
        let (namespaces, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|object| object.kind() == "Namespace");
        let (bindings, rest): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|object| object.kind().ends_with("Binding"));
        let mut outcome = Ok(());
        for objects in [namespaces, rest, bindings] {
            let ensured = stream::iter(objects).map(|object| {
                let api = self.clone();
                async move { api.ensure(&object).await }
            });
            let done: Vec<Result<(), SystemError>> = ensured.buffer_unordered(AT_ONCE_MAX).collect().await;
            outcome = done.into_iter().fold(outcome, Result::and);
        }
        if outcome.is_ok() {
            self.mark_bootstrapped();
        }
        outcome
    }

    /// Keeps right what [`ApiServer::bootstrap`] made, and finishes that first where it failed. Ends with `shutdown`.
    pub async fn keep_system(&self, shutdown: impl Future<Output = ()>) {
        let mut keepers = JoinSet::new();
        let work = async {
            let mut pause = RETRY_FIRST;
            while !self.is_bootstrapped()
                && let Err(error) = self.bootstrap().await
            {
                warn!(error = %carob_kit::chain(&error), "the system's objects are not complete");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
            for object in self.own_objects(self.now()).into_iter().filter(|object| object.stays) {
                keepers.spawn(self.clone().keep(object));
            }
            if self.store().is_shared() {
                keepers.spawn(self.clone().keep_peers());
            }
            keepers.spawn(self.clone().renew_lease());
            keepers.spawn(dangling::keep(self.clone()));
            keepers.spawn(addresses::keep(self.clone()));
            while keepers.join_next().await.is_some() {}
        };
        tokio::select! {
            () = work => {}
            () = shutdown => {}
        }
    }

    /// The built-in groups and versions that are served. A custom kind's are its definition's.
    fn built_in_versions(&self) -> impl Iterator<Item = (String, String)> + use<> {
        let served = self.state().catalogue.snapshot();
        let built_in = served.all().filter(|gv| gv.resources().any(|def| def.custom().is_none()));
        let versions: Vec<_> = built_in.map(|gv| (gv.group().to_owned(), gv.version.to_owned())).collect();
        versions.into_iter()
    }

    /// The objects that this server alone knows how they have to be: where it shares the store, not the API's addresses.
    fn own_objects(&self, now: jiff::Timestamp) -> Vec<SystemObject> {
        let mut all = objects::all(self.system_config(), self.built_in_versions(), now);
        all.retain(|object| !(self.store().is_shared() && object.names_addresses()));
        all
    }

    /// Follows one object and puts it right whenever it changes.
    async fn keep(self, object: SystemObject) {
        let mut watch = Some(watch_of(self.store(), &object.key));
        let mut pause = RETRY_FIRST;
        while let Some(watching) = &mut watch {
            match self.ensure(&object).await {
                Ok(()) => pause = RETRY_FIRST,
                Err(error) => {
                    warn!(error = %carob_kit::chain(&error), "an object of the system is not as it has to be");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST);
                    continue;
                }
            }
            tokio::time::sleep(CORRECTION_PAUSE).await;
            match watching.next().await {
                WatchItem::Event(_) => while let Some(WatchItem::Event(_)) = watching.try_next() {},
                WatchItem::Lagged => watch = Some(watch_of(self.store(), &object.key)),
                WatchItem::Closed => watch = None,
            }
        }
    }

    async fn renew_lease(self) {
        loop {
            tokio::time::sleep(LEASE_RENEWAL).await;
            let lease = objects::identity_lease(self.system_config(), self.now());
            if let Err(error) = self.ensure(&lease).await {
                warn!(error = %carob_kit::chain(&error), "the identity Lease is not renewed");
            }
        }
    }

    async fn ensure(&self, object: &SystemObject) -> Result<(), SystemError> {
        let what = || format!("make {} {}", object.kind(), meta::name(&object.object));
        for _ in 0..ATTEMPTS_MAX {
            let Some(held) = self.held(object, &what).await? else {
                if self.create(object, &what).await? {
                    return self.ensure_status(object, &what).await;
                }
                continue;
            };
            match correct(&object.keep, &object.object, held) {
                Correction::None => return self.ensure_status(object, &what).await,
                Correction::Update(changed) => {
                    let (status, answer) = self.ask(Method::PUT, &object.own_path(), Some(&changed), &what).await?;
                    match status {
                        StatusCode::CONFLICT | StatusCode::NOT_FOUND => {}
                        _ => return expect(status, &answer, &what).map(drop),
                    }
                }
                Correction::Replace => {
                    let (status, answer) = self.ask(Method::DELETE, &object.own_path(), None, &what).await?;
                    if status != StatusCode::NOT_FOUND {
                        expect(status, &answer, &what)?;
                    }
                }
            }
        }
        Err(SystemError::Overtaken { what: what() })
    }

    /// The object as the API gives it. What the store does not have is not asked for: at a first start that is all of it.
    async fn held(&self, object: &SystemObject, what: &impl Fn() -> String) -> Result<Option<Value>, SystemError> {
        if self.store().get(&object.key).is_none() {
            return Ok(None);
        }
        let (status, answer) = self.ask(Method::GET, &object.own_path(), None, what).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        expect(status, &answer, what).map(|()| Some(answer))
    }

    /// Whether this created it, and not another.
    async fn create(&self, object: &SystemObject, what: &impl Fn() -> String) -> Result<bool, SystemError> {
        let (status, answer) = self.ask(Method::POST, &object.path, Some(&object.object), what).await?;
        if status == StatusCode::CONFLICT {
            return Ok(false);
        }
        expect(status, &answer, what).map(|()| true)
    }

    /// The condition of a ServiceCIDR, which only its status takes.
    async fn ensure_status(&self, object: &SystemObject, what: &impl Fn() -> String) -> Result<(), SystemError> {
        if object.keep != Keep::ServiceCidr {
            return Ok(());
        }
        let Some(mut held) = self.held(object, what).await? else { return Ok(()) };
        if held["spec"]["cidrs"] != object.object["spec"]["cidrs"] {
            if !self.is_bootstrapped() {
                let (given, kept) = (&object.object["spec"]["cidrs"], &held["spec"]["cidrs"]);
                let note = format!("The default ServiceCIDR {kept} does not match the flag configuration {given}");
                let reason = "KubernetesDefaultServiceCIDRInconsistent";
                addresses::Report::of(self, &held, "default").say(reason, "ServiceCIDRSync", note).await;
            }
            return Ok(());
        }
        if !objects::mark_ready(&mut held, self.now()) {
            return Ok(());
        }
        let (status, answer) =
            self.ask(Method::PUT, &format!("{}/status", object.own_path()), Some(&held), what).await?;
        expect(status, &answer, what)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        what: &impl Fn() -> String,
    ) -> Result<(StatusCode, Value), SystemError> {
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .header("user-agent", "kube-apiserver")
            .body(Full::new(body))
            .map_err(|source| SystemError::Request { what: what(), source })?;
        let response = self.handle(request, UserInfo::api_server()).await;
        let status = response.status();
        let refused = |message: String| SystemError::Refused { what: what(), status, message };
        let body = response.into_body().collect().await.map_err(|error| refused(error.to_string()))?.to_bytes();
        debug!(%status, path, "the API server's own request");
        let answer = serde_json::from_slice(&body).map_err(|source| SystemError::Answer { what: what(), source })?;
        Ok((status, answer))
    }
}

fn watch_of(store: &Store, key: &str) -> Watch {
    store.list_and_watch(key).1
}

fn expect(status: StatusCode, answer: &Value, what: &impl Fn() -> String) -> Result<(), SystemError> {
    if status.is_success() {
        return Ok(());
    }
    let message = answer["message"].as_str().unwrap_or_default().to_owned();
    Err(SystemError::Refused { what: what(), status, message })
}
