//! Values that are kept sealed: what is on the disk, and what happens when the key changes.

use std::path::Path;

use carob_kit::fs::FaultFs;

use super::SMALL;
use crate::{Expect, OpenError, Opened, Options, Store, Txn, ValueError, Values};
use std::sync::Arc;

use bytes::Bytes;

/// Seals by the first of its keys, and opens by any.
#[derive(Debug)]
struct Xor(Vec<u8>);

impl Values for Xor {
    fn seal(&self, _key: &str, value: &Bytes) -> Result<Bytes, ValueError> {
        let (key, head) = (self.0[0], format!("k8s:enc:{}:", self.0[0]));
        Ok(head.bytes().chain(value.iter().map(|byte| byte ^ key)).collect())
    }

    fn open(&self, key: &str, kept: &Bytes) -> Result<Opened, ValueError> {
        for (index, own) in self.0.iter().enumerate() {
            if let Some(sealed) = kept.strip_prefix(format!("k8s:enc:{own}:").as_bytes()) {
                let value = sealed.iter().map(|byte| byte ^ own).collect();
                return Ok(Opened { value, is_outdated: index > 0 });
            }
        }
        if kept.starts_with(crate::SEALED) {
            return Err(ValueError { key: key.to_owned(), why: "no key opens it".to_owned() });
        }
        Ok(Opened { value: kept.clone(), is_outdated: true })
    }
}

async fn open(fs: &FaultFs, keys: &[u8]) -> Result<Store, OpenError> {
    let values = (!keys.is_empty()).then(|| Arc::new(Xor(keys.to_vec())) as Arc<dyn Values>);
    let options = Options { values, ..Options::default() };
    Store::embedded_sized(Arc::new(fs.clone()), Path::new("store"), SMALL, options).await
}

fn refused(opened: Result<Store, OpenError>) -> String {
    match opened {
        Err(OpenError::Value(error)) => error.to_string(),
        other => panic!("expected a value that cannot be read, got {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn values_are_sealed_on_the_disk_and_change_their_key() {
    let fs = FaultFs::new();
    let store = open(&fs, &[]).await.expect("a new store");
    store.txn(Txn::put("/a", Expect::Any, "as it is")).await.expect("a put");
    store.close().await.expect("closed");

    // From now on values are sealed: those that are there are sealed when they are written again.
    let store = open(&fs, &[7]).await.expect("a store with values as they are");
    assert_eq!(store.get("/a").expect("it is there").value, "as it is");
    assert_eq!(store.reseal().await.expect("sealed"), 1);
    assert_eq!(store.reseal().await.expect("sealed"), 0);
    let last = store.txn(Txn::put("/b", Expect::Any, "new")).await.expect("a put").revision;
    assert_eq!(store.get("/b").expect("it is there").value, "new", "in memory it is as it is");
    store.close().await.expect("closed");
    let error = refused(open(&fs, &[]).await);
    assert!(error.contains("/a") && error.contains("--encryption-provider-config"), "{error}");

    // Another key comes first, and the one before it can go once nothing is left of it.
    let store = open(&fs, &[9, 7]).await.expect("both keys are there");
    assert_eq!(store.current(), last);
    assert_eq!(store.get("/a").expect("it is there").value, "as it is");
    assert_eq!(store.reseal().await.expect("sealed"), 2);
    store.close().await.expect("closed");
    let error = refused(open(&fs, &[7]).await);
    assert!(error.contains("no key opens it"), "{error}");
    let store = open(&fs, &[9]).await.expect("the new key is enough, though the log holds what the old one sealed");
    assert_eq!(store.get("/b").expect("it is there").value, "new");
    store.close().await.expect("closed");
}
