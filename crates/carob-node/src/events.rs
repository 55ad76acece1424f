//! What happens to Pods, told to their owners as Events.

use carob_client::{EventKind, EventRecorder};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use crate::pod::Member;

/// What an event is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject(pub ObjectReference);

impl Subject {
    pub fn pod(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        Self(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        })
    }

    pub fn container(pod: &Pod, member: &Member<'_>) -> Self {
        let mut subject = Self::pod(pod);
        subject.0.field_path = Some(member.field_path());
        subject
    }

    pub fn node(name: &str, uid: &str) -> Self {
        Self(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        })
    }
}

pub trait Events: Send + Sync {
    fn normal(&self, subject: &Subject, reason: &str, message: String);
    fn warning(&self, subject: &Subject, reason: &str, message: String);
}

impl Events for EventRecorder {
    fn normal(&self, subject: &Subject, reason: &str, message: String) {
        self.record(subject.0.clone(), EventKind::Normal, reason, message);
    }

    fn warning(&self, subject: &Subject, reason: &str, message: String) {
        self.record(subject.0.clone(), EventKind::Warning, reason, message);
    }
}
