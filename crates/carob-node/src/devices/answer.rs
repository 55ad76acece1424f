//! What plug-ins answered for a container, as its runtime is told of it. Pure.

use std::collections::BTreeMap;

use carob_cri::v1::{CdiDevice, Device, KeyValue, Mount};
use carob_devices::encode_answer;
use carob_devices::v1beta1::ContainerAllocateResponse;

/// Bytes of one answer: it is noted on disk, and part of what the runtime is sent.
const ANSWER_LEN_MAX: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("the plug-in has answered nothing for the container")]
    Nothing,
    #[error("the plug-in's answer has {0} bytes: {ANSWER_LEN_MAX} can be")]
    Long(usize),
    #[error("the plug-in has answered with the path {0:?}, which is not absolute")]
    Path(String),
    #[error("the plug-in has answered with the permissions {0:?}: letters of \"rwm\" can be")]
    Permissions(String),
    #[error("the plug-in has answered with the variable {0:?}, which no environment can have")]
    Variable(String),
}

/// Looks whether an answer can be followed at all.
pub(super) fn check(answer: Option<ContainerAllocateResponse>) -> Result<ContainerAllocateResponse, AnswerError> {
    let answer = answer.ok_or(AnswerError::Nothing)?;
    let len = encode_answer(&answer).len();
    if len > ANSWER_LEN_MAX {
        return Err(AnswerError::Long(len));
    }
    let devices = answer.devices.iter().flat_map(|device| [&device.container_path, &device.host_path]);
    let mounts = answer.mounts.iter().flat_map(|mount| [&mount.container_path, &mount.host_path]);
    if let Some(path) = devices.chain(mounts).find(|path| !path.starts_with('/') || path.contains('\0')) {
        return Err(AnswerError::Path(path.clone()));
    }
    let wrong = |text: &str| text.is_empty() || text.chars().any(|letter| !"rwm".contains(letter));
    if let Some(device) = answer.devices.iter().find(|device| wrong(&device.permissions)) {
        return Err(AnswerError::Permissions(device.permissions.clone()));
    }
    let unfit =
        |(name, value): &(&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    if let Some((name, _)) = answer.envs.iter().find(unfit) {
        return Err(AnswerError::Variable(name.clone()));
    }
    Ok(answer)
}

/// What a container gets with its devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct WithDevices {
    pub(crate) envs: Vec<KeyValue>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cdi_devices: Vec<CdiDevice>,
}

impl WithDevices {
    /// Adds one answer. Of two that say different things about one place the first is followed, as by the kubelet.
    pub(super) fn add(&mut self, answer: &ContainerAllocateResponse) {
        for (key, value) in &answer.envs {
            if !self.envs.iter().any(|held| held.key == *key) {
                self.envs.push(KeyValue { key: key.clone(), value: value.clone() });
            }
        }
        for mount in &answer.mounts {
            if !self.mounts.iter().any(|held| held.container_path == mount.container_path) {
                self.mounts.push(Mount {
                    container_path: mount.container_path.clone(),
                    host_path: mount.host_path.clone(),
                    readonly: mount.read_only,
                    ..Mount::default()
                });
            }
        }
        for device in &answer.devices {
            if !self.devices.iter().any(|held| held.container_path == device.container_path) {
                self.devices.push(Device {
                    container_path: device.container_path.clone(),
                    host_path: device.host_path.clone(),
                    permissions: device.permissions.clone(),
                });
            }
        }
        for (key, value) in &answer.annotations {
            self.annotations.entry(key.clone()).or_insert_with(|| value.clone());
        }
        for device in &answer.cdi_devices {
            if !self.cdi_devices.iter().any(|held| held.name == device.name) {
                self.cdi_devices.push(CdiDevice { name: device.name.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use carob_devices::v1beta1::{DeviceSpec, Mount as PluginMount};

    use super::*;

    fn answer(host: &str) -> ContainerAllocateResponse {
        ContainerAllocateResponse {
            envs: [("CARD".to_owned(), host.to_owned())].into(),
            mounts: vec![PluginMount {
                container_path: "/lib/x".to_owned(),
                host_path: host.to_owned(),
                read_only: true,
            }],
            devices: vec![DeviceSpec {
                container_path: "/dev/x".to_owned(),
                host_path: host.to_owned(),
                permissions: "rw".to_owned(),
            }],
            ..ContainerAllocateResponse::default()
        }
    }

    #[test]
    fn the_first_of_two_answers_about_one_place_is_followed() {
        let mut all = WithDevices::default();
        all.add(&answer("/a"));
        all.add(&answer("/b"));
        assert_eq!((all.envs.len(), all.envs[0].value.as_str()), (1, "/a"));
        assert_eq!((all.mounts.len(), all.mounts[0].host_path.as_str(), all.mounts[0].readonly), (1, "/a", true));
        assert_eq!((all.devices.len(), all.devices[0].host_path.as_str()), (1, "/a"));
    }

    #[test]
    fn answers_that_cannot_be_followed_are_refused() {
        assert!(check(Some(answer("/a"))).is_ok());
        assert_eq!(check(None), Err(AnswerError::Nothing));
        assert_eq!(check(Some(answer("a"))), Err(AnswerError::Path("a".to_owned())));
        let mut permissions = answer("/a");
        permissions.devices[0].permissions = "x".to_owned();
        assert_eq!(check(Some(permissions)), Err(AnswerError::Permissions("x".to_owned())));
        let mut variable = answer("/a");
        variable.envs.insert("A=B".to_owned(), String::new());
        assert_eq!(check(Some(variable)), Err(AnswerError::Variable("A=B".to_owned())));
        let mut long = answer("/a");
        long.annotations.insert("a".to_owned(), "x".repeat(ANSWER_LEN_MAX));
        assert!(matches!(check(Some(long)), Err(AnswerError::Long(_))));
    }
}
