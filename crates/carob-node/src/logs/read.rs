//! Reads a container's log as a client asks for it (kubelet `pkg/kubelet/kuberuntime/logs`).
