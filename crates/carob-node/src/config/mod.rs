//! What the runtime is told: a Pod's sandbox and its containers in CRI's words. Pure, but for the machine's own files that
//! callers pass in.

pub mod container;
pub mod network;
pub mod resources;
pub mod sandbox;
pub mod security;

/// Labels by which the runtime's objects are found again (kubelet `pkg/kubelet/types/labels.go`).
pub mod labels {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// What is noted on a container for whoever observes it later, also after a restart of the node.
pub mod notes {
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Back-off in force when the run was started, in whole seconds.
    pub const RESTART_DELAY_S: &str = "carob.io/restart-delay-seconds";
    /// How many times all containers of the Pod had started over before.
    pub const CYCLE: &str = "carob.io/cycle";
    /// The image as the spec named it, to see that it changed.
    pub const SPEC_IMAGE: &str = "carob.io/spec-image";
    /// Bytes that the container requested when it was made: no control group knows them.
    pub const MEMORY_REQUEST: &str = "carob.io/memory-request";
}
