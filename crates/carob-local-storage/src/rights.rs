//! Whether the API server lets a node make volumes. carob's does since it has agents that make them; upstream's does not, nor did
//! carob's before.

use std::time::Duration;

use carob_kit::Backoff;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

/// What nothing can be done without: verb and resource of the core group.
const NEEDED: [(&str, &str); 4] = [
    ("list", "persistentvolumeclaims"),
    ("list", "persistentvolumes"),
    ("create", "persistentvolumes"),
    ("patch", "persistentvolumeclaims"),
];
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// An API server that is upgraded gives the rights from then on.
const RETRY_LONGEST: Duration = Duration::from_secs(300);

/// Waits until the API server lets this client make volumes. That it does not is said once.
///
/// Cancel safe.
pub async fn until_allowed(client: &kube::Client) {
    let mut retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    let mut is_said = false;
    loop {
        match first_missing(client).await {
            Ok(None) => return,
            Ok(Some((verb, resource))) if !is_said => {
                is_said = true;
                tracing::warn!(
                    "no volumes of {} are made on this node: the API server does not let it {verb} {resource}. It is asked again \
                     from time to time; --disable local-storage ends that",
                    crate::plan::PROVISIONER
                );
            }
            Ok(Some(_)) => {}
            // Ever less often, as it is asked.
            Err(error) => tracing::warn!(
                error = %carob_kit::chain(&error),
                "no volumes of {} are made yet: the API server does not say whether this node may",
                crate::plan::PROVISIONER
            ),
        }
        tokio::time::sleep(retry.fail()).await;
    }
}

async fn first_missing(client: &kube::Client) -> Result<Option<(&'static str, &'static str)>, kube::Error> {
    for (verb, resource) in NEEDED {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            resource: Some(resource.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answered = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
        if !answered.status.is_some_and(|status| status.allowed) {
            return Ok(Some((verb, resource)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http::Response;
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rights_are_waited_for_and_asked_for_ever_less_often() {
        const REFUSALS: usize = 12;
        let (asked, times) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, noted) = (Arc::clone(&asked), Arc::clone(&times));
        let client = carob_client::in_process(tower::service_fn(move |_| {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            if number <= REFUSALS {
                noted.lock().expect("no test panics holding it").push(tokio::time::Instant::now());
            }
            let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "metadata": {}, "spec": {}, "status": {"allowed": number >= REFUSALS}});
            let body = http_body_util::Full::new(Bytes::from(review.to_string()));
            async move { Ok::<_, std::io::Error>(Response::builder().status(201).body(body).expect("the code is valid")) }
        }));
        until_allowed(&client).await;
        assert_eq!(asked.load(Ordering::Relaxed), REFUSALS + NEEDED.len());
        let times = times.lock().expect("no test panics holding it");
        let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits[REFUSALS - 1] > 100 * waits[0] && waits[REFUSALS - 1] <= RETRY_LONGEST, "{waits:?}");
    }
}
