//! Which resources the API serves now, built-in or not.

use carob_client::{During, ReconcileError};
use kube::core::{ApiResource, discovery::Scope};
use kube::discovery::{ApiCapabilities, Discovery};

/// Verbs that a resource needs for its objects to be found and removed.
const NEEDED_VERBS: [&str; 3] = ["list", "delete", "watch"];

/// One resource at the version that the server prefers.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Served {
    fn new((resource, capabilities): (ApiResource, ApiCapabilities)) -> Self {
        let namespaced = capabilities.scope == Scope::Namespaced;
        Self { resource, namespaced, verbs: capabilities.operations }
    }

    pub(crate) fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|served| served == verb)
    }
}

/// Every resource whose objects can be listed, watched and deleted.
pub(crate) async fn served(client: &kube::Client) -> Result<Vec<Served>, ReconcileError> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        // Servers before v1.26 have no aggregated discovery.
        Err(_) => {
            Discovery::new(client.clone()).run().await.during(|| "discover the resources of the API".to_owned())?
        }
    };
    let resources = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources).map(Served::new);
    Ok(resources.filter(|served| NEEDED_VERBS.iter().all(|verb| served.allows(verb))).collect())
}
