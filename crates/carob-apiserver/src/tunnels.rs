//! Nodes that keep a tunnel to this server, since nobody can reach them (`carob agent --tunnel`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use carob_api::Status;
use carob_streams::reverse::{PROTOCOL, Tunnel};
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::body::Body;
use crate::error::ApiResult;
use crate::identity::Identity;
use crate::state::State;

/// The tunnels that there are, one per node: of a node that opens a second one, the second counts.
#[derive(Debug, Default)]
pub struct Tunnels {
    of_node: Mutex<HashMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// Tells it from the one that takes its place.
    id: String,
    tunnel: Tunnel,
}

impl Tunnels {
    pub(crate) fn get(&self, node: &str) -> Option<Tunnel> {
        self.lock().get(node).map(|kept| kept.tunnel.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.of_node.lock().expect("no holder of the tunnels panics")
    }

    /// Keeps a node's tunnel until it ends, or the server does.
    async fn keep(&self, node: String, upgrade: OnUpgrade, mut closing: watch::Receiver<bool>) -> hyper::Result<()> {
        let (tunnel, work) = Tunnel::on(upgrade.await?).await?;
        let id = carob_kit::uid();
        self.lock().insert(node.clone(), Kept { id: id.clone(), tunnel });
        info!(node, "the node is reached through its tunnel");
        let ended = tokio::select! {
            ended = work => ended,
            // A sender that is gone is a server that is gone.
            _ = closing.wait_for(|closing| *closing) => Ok(()),
        };
        let mut tunnels = self.lock();
        if tunnels.get(&node).is_some_and(|kept| kept.id == id) {
            tunnels.remove(&node);
            info!(node, "the node's tunnel has ended");
        }
        ended
    }
}

/// Takes the tunnel of the node that asks. Who may is for authorization to say; whose it is, the node's name.
pub(crate) fn answer(api: &State, parts: &mut Parts, user: &Identity) -> ApiResult<Response<Body>> {
    let Some(node) = user.as_node() else {
        return Err(Status::bad_request("only the agent of a node opens a tunnel").into());
    };
    let asks = parts.headers.get(UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| asks && parts.method == Method::GET);
    let Some(upgrade) = upgrade else {
        return Err(Status::bad_request(format!("a tunnel begins with a GET that upgrades to {PROTOCOL}")).into());
    };
    let (tunnels, node, closing) = (Arc::clone(&api.tunnels), node.to_owned(), api.closing());
    tokio::spawn(async move {
        if let Err(error) = tunnels.keep(node, upgrade, closing).await {
            debug!(%error, "a tunnel ended");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
