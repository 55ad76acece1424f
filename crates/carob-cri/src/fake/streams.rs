use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::FakeRuntime;
use crate::v1::ContainerState;
use crate::{ByteStream, CriError, ExecSession, ExecStart, Streaming};

/// Bytes between the ends of a stream.
const BUFFER_LEN: usize = 64 * 1024;

#[async_trait]
impl Streaming for FakeRuntime {
    /// Answers with the output and the code that [`FakeRuntime::on_exec`] set; `cat` sends its input back until it ends.
    async fn exec(&self, start: ExecStart) -> Result<ExecSession, CriError> {
        self.note(format!("exec {}", start.cmd.join(" ")));
        let (code, output) = {
            let state = self.lock();
            let container = state.containers.get(&start.container_id);
            let container = container.ok_or_else(|| CriError::not_found("container not found"))?;
            if container.state != ContainerState::ContainerRunning {
                return Err(CriError::failed_precondition("container is not running"));
            }
            let word = start.cmd.first().map(String::as_str).unwrap_or_default();
            state.commands.get(word).cloned().unwrap_or((0, String::new()))
        };
        if start.cmd.first().is_some_and(|word| word == "cat") {
            return Ok(echo(code));
        }
        Ok(ExecSession {
            stdin: None,
            stdout: start.stdout.then(|| Box::pin(std::io::Cursor::new(output.into_bytes())) as _),
            stderr: None,
            resize: None,
            exit: async move { Ok(code) }.boxed(),
        })
    }

    /// Sends the input back.
    async fn attach(&self, start: ExecStart) -> Result<ExecSession, CriError> {
        self.note(format!("attach {}", start.container_id));
        Ok(echo(0))
    }

    async fn port_forward(&self, pod_sandbox_id: &str, port: u16) -> Result<ByteStream, CriError> {
        self.note(format!("forward {port}"));
        if !self.lock().sandboxes.contains_key(pod_sandbox_id) {
            return Err(CriError::not_found("sandbox not found"));
        }
        if self.lock().echo_port != Some(port) {
            return Err(CriError::internal(format!("connect to 127.0.0.1:{port}: connection refused")));
        }
        let (near, far) = tokio::io::duplex(BUFFER_LEN);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(far);
            // Either end may go away first.
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(tokio::io::AsyncWriteExt::shutdown(&mut writer).await);
        });
        Ok(Box::new(near))
    }
}

fn echo(code: i32) -> ExecSession {
    let (stdin, stdout) = tokio::io::duplex(BUFFER_LEN);
    let (done, exit) = tokio::sync::oneshot::channel();
    let (from, to) = tokio::io::duplex(BUFFER_LEN);
    tokio::spawn(async move {
        let (mut reader, mut writer) = (stdout, from);
        drop(tokio::io::copy(&mut reader, &mut writer).await);
        drop(writer);
        // The session may be gone by now.
        done.send(code).unwrap_or_default();
    });
    ExecSession {
        stdin: Some(Box::pin(stdin)),
        stdout: Some(Box::pin(to)),
        stderr: None,
        resize: None,
        exit: async move { exit.await.map_err(|_| CriError::internal("the echo is gone")) }.boxed(),
    }
}
