//! What can be wrong with an expression, in the words of cel-go (common/error.go), since clients and tests read them.

use std::fmt;
use std::sync::Arc;

/// How many faults one expression reports (cel-go common/errors.go).
pub(crate) const ISSUES_MAX: usize = 100;
/// The longest line that is shown below a fault, in code points (cel-go common/error.go).
const SNIPPET_MAX: usize = 16_384;

/// One fault and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Line from 1 and column from 0, in code points; `None` where the fault is of the whole expression.
    pub location: Option<(usize, usize)>,
    pub message: String,
}

/// Why an expression does not compile: all faults, and the lines that they are in.
///
/// Its text is what cel-go prints: `ERROR: <input>:1:5: undeclared reference to 'x' (in container '')`, the line, and a mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CompileError {
    issues: Vec<Issue>,
    text: String,
}

impl CompileError {
    pub(crate) fn new(source: &str, mut issues: Vec<Issue>, count: usize) -> Self {
        issues.sort_by_key(|issue| issue.location.unwrap_or_default());
        let mut lines: Vec<String> = issues.iter().map(|issue| display(source, issue)).collect();
        if count > ISSUES_MAX {
            lines.push(format!("{} more errors were truncated", count - ISSUES_MAX));
        }
        Self { issues, text: lines.join("\n") }
    }

    /// The faults in the order of their places.
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }
}

fn display(source: &str, issue: &Issue) -> String {
    let Some((line, column)) = issue.location else {
        return format!("ERROR: <input>:-1:0: {}", issue.message);
    };
    let mut text = format!("ERROR: <input>:{line}:{}: {}", column + 1, issue.message);
    let Some(snippet) = source.split('\n').nth(line - 1) else { return text };
    if snippet.len() > SNIPPET_MAX {
        return text;
    }
    text.push_str("\n | ");
    text.push_str(&snippet.replace('\t', " "));
    text.push_str("\n | ");
    let mut marked = snippet.chars();
    for character in marked.by_ref().take(column) {
        text.push(if character.len_utf8() > 1 { '\u{ff0e}' } else { '.' });
    }
    text.push(if marked.next().is_some_and(|character| character.len_utf8() > 1) { '\u{ff3e}' } else { '^' });
    text
}

/// Why an evaluation has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvalError {
    /// An error of the language: `&&`, `||` and the quantifiers absorb it where the other side decides.
    Value(Arc<str>),
    /// The budget is used up. Nothing absorbs it.
    CostExceeded,
    /// The evaluation wanted more memory than one may have. Nothing absorbs it.
    MemoryExceeded,
    /// Values or variables of policies are nested too deeply. Nothing absorbs it.
    TooDeep,
}

impl EvalError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Value(Arc::from(message.into()))
    }

    pub(crate) fn no_such_overload() -> Self {
        Self::new("no such overload")
    }

    pub(crate) fn no_such_key(key: &dyn fmt::Display) -> Self {
        Self::new(format!("no such key: {key}"))
    }

    /// Whether the evaluation as a whole is over.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Value(_))
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(message) => f.write_str(message),
            Self::CostExceeded => f.write_str("operation cancelled: actual cost limit exceeded"),
            Self::MemoryExceeded => f.write_str("operation cancelled: memory limit exceeded"),
            Self::TooDeep => f.write_str("operation cancelled: nesting limit exceeded"),
        }
    }
}

impl std::error::Error for EvalError {}
