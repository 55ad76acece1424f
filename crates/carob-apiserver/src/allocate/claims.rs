//! Claims of node ports, where other servers give them away as well.
//!
//! A claim is a key that is put only where it is absent. Whoever has made one sees every Service that was stored before it, looks
//! once more whether any holds what was chosen, and stores its own before the claim goes. So of two servers that choose the same
//! at the same time one finds the other's claim, or its Service. (An address has an object of its own for that, see
//! [`super::ip_address`].)

use std::sync::Arc;
use std::time::Duration;

use carob_kit::chain;
use carob_store::{Durability, Expect, Op, Revision, Store, Txn, TxnError};
use futures_util::future::join_all;
use tracing::warn;

/// Where claims are, by what is claimed.
const CLAIMS: &str = "/registry/carob-claims/nodeports/";
/// How long the claim of a server that has died stands: longer than any request may take (--request-timeout, and etcd's own).
pub(super) const CLAIM_TTL: Duration = Duration::from_secs(120);

/// One claim in the store.
#[derive(Debug)]
pub(super) struct Claim {
    key: Arc<str>,
    revision: Revision,
}

/// Claims all of the ports, or none; `None` where another server has chosen one of them.
pub(super) async fn claim(store: &Store, ports: &[u16]) -> Result<Option<Vec<Claim>>, TxnError> {
    let outcomes = join_all(ports.iter().map(|port| async move {
        let op = Op::Put { value: "{}".into(), ttl: Some(CLAIM_TTL), durability: Durability::Lazy };
        let key: Arc<str> = format!("{CLAIMS}{port}").into();
        let done = store.txn(Txn { key: Arc::clone(&key), expect: Expect::Absent, op }).await?;
        Ok(Claim { key, revision: done.revision })
    }));
    let (mut made, mut failure, mut is_conflict) = (Vec::new(), None, false);
    for outcome in outcomes.await {
        match outcome {
            Ok(claim) => made.push(claim),
            Err(TxnError::Conflict { .. }) => is_conflict = true,
            Err(error) => failure = Some(error),
        }
    }
    if failure.is_none() && !is_conflict {
        return Ok(Some(made));
    }
    release(store, made).await;
    failure.map_or(Ok(None), Err)
}

/// What cannot be deleted ends by itself.
pub(super) async fn release(store: &Store, claims: Vec<Claim>) {
    join_all(claims.into_iter().map(|claim| async move {
        match store.txn(Txn::delete(Arc::clone(&claim.key), Expect::Revision(claim.revision))).await {
            Ok(_) | Err(TxnError::Conflict { .. }) => {}
            Err(error) => warn!(claim = &*claim.key, error = %chain(&error), "a claim stays until it ends"),
        }
    }))
    .await;
}

#[cfg(test)]
mod tests {
    use carob_store::Options;

    use super::*;

    #[tokio::test]
    async fn of_two_who_choose_the_same_port_one_gets_it() {
        let store = Store::in_memory(Options::default());
        let claims = claim(&store, &[30001, 30002]).await.expect("the store answers").expect("nobody has them");
        assert!(claim(&store, &[30002, 30003]).await.expect("the store answers").is_none(), "one of two is claimed");
        assert_eq!(store.count(CLAIMS), 2, "nothing stays of a claim that failed");
        release(&store, claims).await;
        let claims = claim(&store, &[30002, 30003]).await.expect("the store answers").expect("they are free again");
        release(&store, claims).await;
        assert_eq!(store.count(CLAIMS), 0);
    }
}
