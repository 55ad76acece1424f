//! The environment of a container, from all its sources (kubelet `pkg/kubelet/kubelet_pods.go`, makeEnvironmentVariables).

pub mod expand;
pub mod fields;
mod file;
pub mod services;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use carob_cri::v1::KeyValue;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};

use crate::files::Files;
use crate::objects::{FetchError, Objects};
use crate::pod::PodId;
use fields::{FieldError, FieldFacts};
pub use file::FileError;

/// Why a container's environment cannot be made. The texts are what the container's status shows.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigMapKey { namespace: String, name: String, key: String },
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey { namespace: String, name: String, key: String },
    #[error("the value of {variable} is not UTF-8")]
    NotText { variable: String },
    #[error("resolve {variable}")]
    Field {
        variable: String,
        #[source]
        source: FieldError,
    },
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoVolume(String),
    #[error("environment variable key {key:?} not found in file {path:?}")]
    NoFileKey { key: String, path: String },
    #[error("couldn't parse env file {0:?}")]
    File(String, #[source] FileError),
    #[error("couldn't read env file {0:?}")]
    ReadFile(String, #[source] std::io::Error),
    #[error("read what the environment refers to")]
    Fetch(#[source] FetchError),
}

/// What [`assemble`] reads besides the Pod: the objects that its containers refer to.
#[derive(Debug, Default)]
struct Sources {
    config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// By volume and path; `None` where there is no such file.
    files: BTreeMap<(String, String), Option<String>>,
}

/// The environment of `container`, in no order that matters.
pub async fn environment(
    pod: &Pod,
    container: &Container,
    facts: &FieldFacts,
    objects: &dyn Objects,
    volumes: &Mounted<'_>,
) -> Result<Vec<KeyValue>, EnvError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut sources = fetch(&namespace, container, objects).await.map_err(EnvError::Fetch)?;
    sources.files = read_files(pod, container, volumes).await?;
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services: Vec<Arc<Service>> = objects.services();
    let service_env = services::service_env(&services, &namespace, links);
    let env = assemble(pod, container, facts, &sources, &service_env)?;
    Ok(env.into_iter().map(|(key, value)| KeyValue { key, value }).collect())
}

/// Where the Pod's volumes are, and how their files are read.
pub struct Mounted<'a> {
    pub paths: &'a BTreeMap<String, PathBuf>,
    pub files: &'a Files,
}

/// The files that variables come from. A volume may be on a server that is gone, so they are read as all of volumes is.
async fn read_files(
    pod: &Pod,
    container: &Container,
    volumes: &Mounted<'_>,
) -> Result<BTreeMap<(String, String), Option<String>>, EnvError> {
    let mut files = BTreeMap::new();
    let variables = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    for from in variables.filter_map(|from| from.file_key_ref.as_ref()) {
        let key = (from.volume_name.clone(), from.path.clone());
        if files.contains_key(&key) {
            continue;
        }
        let dir = volumes.paths.get(&from.volume_name);
        let dir = dir.ok_or_else(|| EnvError::NoVolume(from.volume_name.clone()))?.clone();
        let (path, uid) = (from.path.clone(), PodId::of(pod).uid);
        let read = volumes.files.run(&uid, "read a file of variables", move || file::read(&dir, &path)).await;
        let text = match read.map_err(std::io::Error::from).and_then(|read| read) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(EnvError::ReadFile(from.path.clone(), error)),
        };
        files.insert(key, text);
    }
    Ok(files)
}

async fn fetch(namespace: &str, container: &Container, objects: &dyn Objects) -> Result<Sources, FetchError> {
    let mut config_maps: Vec<&str> = Vec::new();
    let mut secrets: Vec<&str> = Vec::new();
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.as_ref().map(|reference| reference.name.as_str()));
        secrets.extend(from.secret_ref.as_ref().map(|reference| reference.name.as_str()));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(from.config_map_key_ref.as_ref().map(|reference| reference.name.as_str()));
        secrets.extend(from.secret_key_ref.as_ref().map(|reference| reference.name.as_str()));
    }
    let mut sources = Sources::default();
    for name in config_maps {
        if !sources.config_maps.contains_key(name) {
            sources.config_maps.insert(name.to_owned(), objects.config_map(namespace, name).await?);
        }
    }
    for name in secrets {
        if !sources.secrets.contains_key(name) {
            sources.secrets.insert(name.to_owned(), objects.secret(namespace, name).await?);
        }
    }
    Ok(sources)
}

fn assemble(
    pod: &Pod,
    container: &Container,
    facts: &FieldFacts,
    sources: &Sources,
    service_env: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, EnvError> {
    let mut env = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in whole(from, sources)? {
            let variable = format!("{prefix}{key}");
            let value = String::from_utf8(value).map_err(|_| EnvError::NotText { variable: variable.clone() })?;
            env.insert(variable, value);
        }
    }
    for variable in container.env.iter().flatten() {
        let literal = variable.value.as_deref().unwrap_or_default();
        let value = if literal.is_empty() && variable.value_from.is_some() {
            from_source(pod, container, variable, facts, sources)?
        } else {
            let known = |name: &str| env.get(name).or_else(|| service_env.get(name)).cloned();
            Some(expand::expand(literal, &known))
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    for (key, value) in service_env {
        env.entry(key.clone()).or_insert_with(|| value.clone());
    }
    Ok(env)
}

/// All keys of the object that an `envFrom` names; nothing where it is optional and absent.
fn whole(
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    sources: &Sources,
) -> Result<Vec<(String, Vec<u8>)>, EnvError> {
    if let Some(reference) = &from.config_map_ref {
        return match sources.config_maps.get(&reference.name).cloned().flatten() {
            Some(map) => Ok(map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect()),
            None if reference.optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::NoConfigMap(reference.name.clone())),
        };
    }
    if let Some(reference) = &from.secret_ref {
        return match sources.secrets.get(&reference.name).cloned().flatten() {
            Some(secret) => Ok(secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()),
            None if reference.optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::NoSecret(reference.name.clone())),
        };
    }
    Ok(Vec::new())
}

/// One value; `None` where its source is optional and absent, so that the variable stays unset.
fn from_source(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    facts: &FieldFacts,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &variable.value_from else { return Ok(None) };
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    let name = || variable.name.clone();
    if let Some(reference) = &from.field_ref {
        let value = fields::field(pod, &reference.field_path, facts);
        return value.map(Some).map_err(|source| EnvError::Field { variable: name(), source });
    }
    if let Some(selector) = &from.resource_field_ref {
        let value = fields::resource(container, selector, facts);
        return value.map(Some).map_err(|source| EnvError::Field { variable: name(), source });
    }
    if let Some(reference) = &from.config_map_key_ref {
        let (object, key, optional) = (&reference.name, &reference.key, reference.optional == Some(true));
        let Some(map) = sources.config_maps.get(object).cloned().flatten() else {
            return if optional { Ok(None) } else { Err(EnvError::NoConfigMap(object.clone())) };
        };
        return match map.data.as_ref().and_then(|data| data.get(key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMapKey { namespace: namespace(), name: object.clone(), key: key.clone() }),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let (object, key, optional) = (&reference.name, &reference.key, reference.optional == Some(true));
        let Some(secret) = sources.secrets.get(object).cloned().flatten() else {
            return if optional { Ok(None) } else { Err(EnvError::NoSecret(object.clone())) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(key)) {
            Some(value) => {
                let text = String::from_utf8(value.0.clone());
                text.map(Some).map_err(|_| EnvError::NotText { variable: name() })
            }
            None if optional => Ok(None),
            None => Err(EnvError::NoSecretKey { namespace: namespace(), name: object.clone(), key: key.clone() }),
        };
    }
    if let Some(reference) = &from.file_key_ref {
        let path = || reference.path.clone();
        let file = sources.files.get(&(reference.volume_name.clone(), path())).and_then(Option::as_ref);
        let found = match file {
            Some(text) => file::value(text, &reference.key).map_err(|source| EnvError::File(path(), source))?,
            None => None,
        };
        return match found {
            Some(value) => Ok(Some(value)),
            None if reference.optional == Some(true) => Ok(None),
            None => Err(EnvError::NoFileKey { key: reference.key.clone(), path: path() }),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::testing::Shelf;

    async fn env(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [], "enableServiceLinks": false}}))
        .expect("a Pod");
        let container = serde_json::from_value(container).expect("a container");
        let shelf = Shelf::default()
            .config_map(json!({"metadata": {"namespace": "ns", "name": "cm"}, "data": {"a": "1", "b": "$(X)"}}))
            .secret(json!({"metadata": {"namespace": "ns", "name": "s"}, "data": {"k": "djE="}}))
            .service(json!({"metadata": {"namespace": "default", "name": "kubernetes"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}}));
        let dir = tempfile::tempdir().expect("a directory");
        fs_err::write(dir.path().join("vars"), "A='one'\n").expect("written");
        let paths = BTreeMap::from([("v".to_owned(), dir.path().to_owned())]);
        let volumes = Mounted { paths: &paths, files: &Files::default() };
        let result = environment(&pod, &container, &FieldFacts::default(), &shelf, &volumes).await;
        let list = result.map_err(|error| error.to_string())?;
        let mine = list.into_iter().filter(|entry| !entry.key.starts_with("KUBERNETES_"));
        Ok(mine.map(|entry| (entry.key, entry.value)).collect())
    }

    fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
        entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[tokio::test]
    async fn later_sources_win_and_references_see_what_came_before() {
        let container = json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "S_", "secretRef": {"name": "s"}}],
            "env": [
                {"name": "X", "value": "x"},
                {"name": "Y", "value": "$(X)-$(a)-$(S_k)-$(LATER)-$(KUBERNETES_SERVICE_HOST)"},
                {"name": "a", "value": "over"},
                {"name": "LATER", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "vars", "key": "A"}}},
                {"name": "NO", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "x", "key": "A", "optional": true}}},
                {"name": "NOT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": true}}}]});
        let expect = map([
            ("X", "x"),
            ("Y", "x-1-v1-$(LATER)-10.96.0.1"),
            ("a", "over"),
            ("b", "$(X)"),
            ("S_k", "v1"),
            ("LATER", "1"),
            ("POD", "p"),
            ("FILE", "one"),
        ]);
        assert_eq!(env(container).await, Ok(expect));
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        for (container, expect) in [
            (json!({"name": "c", "envFrom": [{"configMapRef": {"name": "no"}}]}), "configmap \"no\" not found"),
            (json!({"name": "c", "envFrom": [{"secretRef": {"name": "no"}}]}), "secret \"no\" not found"),
            (
                json!({"name": "c", "env": [{"name": "V", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "z"}}}]}),
                "couldn't find key z in ConfigMap ns/cm",
            ),
            (
                json!({"name": "c", "env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "s", "key": "z"}}}]}),
                "couldn't find key z in Secret ns/s",
            ),
            (
                json!({"name": "c", "env": [{"name": "V", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "vars", "key": "Z"}}}]}),
                "environment variable key \"Z\" not found in file \"vars\"",
            ),
            (
                json!({"name": "c", "env": [{"name": "V", "valueFrom": {"fileKeyRef": {"volumeName": "w", "path": "vars", "key": "A"}}}]}),
                "cannot find the volume \"w\" referenced by FileKeyRef",
            ),
        ] {
            assert_eq!(env(container).await, Err(expect.to_owned()));
        }
    }
}
