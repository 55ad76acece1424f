//! Who has which devices, on disk: in the kubelet's place and form (`pkg/kubelet/cm/devicemanager/checkpoint`), which other
//! programs read too. Its checksum is one of Go's way to print structs, so it is left 0 and not looked at.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_devices::{decode_answer, encode_answer};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::state::{Given, Holder, Ids, State};

/// The kubelet's name for the file, in the directory of device plug-ins.
pub(super) const FILE: &str = "kubelet_internal_checkpoint";
/// What the kubelet has for devices of no NUMA node.
const NO_NODE: i64 = -1;

#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    #[error("read who has which devices")]
    Read(#[from] io::Error),
    #[error("it is noted in another form who has which devices")]
    Form(#[from] serde_json::Error),
    #[error("what a plug-in answered for container {container:?} of pod {uid} is noted badly")]
    Answer { uid: String, container: String },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Note {
    data: Data,
    checksum: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    ids: BTreeMap<i64, Vec<String>>,
    #[serde(rename = "AllocResp")]
    answer: String,
}

/// What is to be noted of devices; those that a plug-in is being asked for are not given yet.
pub(super) fn text(state: &State) -> Result<Vec<u8>, serde_json::Error> {
    let entry = |(holder, resource, given): (&Holder, &str, &Given)| {
        let answer = given.answer.as_ref()?;
        let mut ids: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in &given.devices {
            for node in given.nodes.get(id).map_or(&[NO_NODE][..], Vec::as_slice) {
                ids.entry(*node).or_default().push(id.clone());
            }
        }
        Some(Entry {
            uid: holder.uid.clone(),
            container_name: holder.container.clone(),
            resource_name: resource.to_owned(),
            ids,
            answer: STANDARD.encode(encode_answer(answer)),
        })
    };
    let registered = state.registered().map(|(name, ids)| (name.clone(), Some(ids.iter().cloned().collect())));
    let data = Data {
        pod_device_entries: Some(state.given().filter_map(entry).collect()),
        registered_devices: Some(registered.collect()),
    };
    serde_json::to_vec(&Note { data, checksum: 0 })
}

/// Resources that had plug-ins, and who has which devices.
pub(super) type Noted = (Ids, BTreeMap<(Holder, String), Given>);

pub(super) fn read(path: &Path) -> Result<Noted, NoteError> {
    let note: Note = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Note::default(),
        text => serde_json::from_slice(&text?)?,
    };
    let mut all = BTreeMap::new();
    for entry in note.data.pod_device_entries.into_iter().flatten() {
        let answer = STANDARD.decode(&entry.answer).ok().and_then(|bytes| decode_answer(&bytes));
        let bad = || NoteError::Answer { uid: entry.uid.clone(), container: entry.container_name.clone() };
        let mut given = Given { answer: Some(answer.ok_or_else(bad)?), ..Given::default() };
        for (node, ids) in entry.ids {
            for id in ids {
                if node != NO_NODE {
                    given.nodes.entry(id.clone()).or_default().push(node);
                }
                given.devices.insert(id);
            }
        }
        all.insert((Holder { uid: entry.uid, container: entry.container_name }, entry.resource_name), given);
    }
    Ok((note.data.registered_devices.into_iter().flatten().map(|(name, _)| name).collect(), all))
}
