//! PEM as Go's `encoding/pem` reads it: what is no well-formed block is passed over.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The label of X.509 certificates.
pub const CERTIFICATE: &str = "CERTIFICATE";

/// Characters in a line of a block that is written.
const LINE_LEN: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub label: String,
    /// Whether there are lines of the form `key: value` before the data.
    pub has_headers: bool,
    pub contents: Vec<u8>,
}

/// The blocks of a text, in order.
pub fn blocks(text: &str) -> impl Iterator<Item = Block> + '_ {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        loop {
            let Some(label) = label_in(lines.next()?, "-----BEGIN ") else { continue };
            let mut ahead = lines.clone();
            if let Some(block) = read(label, &mut ahead) {
                lines = ahead;
                return Some(block);
            }
        }
    })
}

fn label_in<'a>(line: &'a str, begin: &str) -> Option<&'a str> {
    line.trim_end().strip_prefix(begin)?.strip_suffix("-----")
}

/// The rest of a block whose first line was read.
fn read<'a>(label: &str, lines: &mut impl Iterator<Item = &'a str>) -> Option<Block> {
    let mut data = String::new();
    let mut has_headers = false;
    for line in lines {
        if line.starts_with("-----END ") {
            let is_its_end = label_in(line, "-----END ") == Some(label);
            let contents = is_its_end.then(|| STANDARD.decode(&data).ok()).flatten()?;
            return Some(Block { label: label.to_owned(), has_headers, contents });
        }
        // No line of data begins so. To look on for an end would read what follows once for each that begins.
        if line.starts_with("-----BEGIN ") {
            return None;
        }
        if data.is_empty() && line.contains(':') {
            has_headers = true;
        } else {
            data.extend(line.chars().filter(|c| !c.is_ascii_whitespace()));
        }
    }
    None
}

/// One block.
pub fn encode(label: &str, contents: &[u8]) -> String {
    let data = STANDARD.encode(contents);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = data.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_LEN));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_around_it_is_not() {
        let long: Vec<u8> = (0..200).collect();
        let text = format!(
            "about this\n{}between: them\r\n{}after",
            encode("A", &long),
            encode("B C", b"x").replace('\n', "\r\n")
        );
        assert!(text.lines().all(|line| line.trim_end().len() <= LINE_LEN), "{text}");
        let read: Vec<Block> = blocks(&text).collect();
        let block = |label: &str, contents: &[u8]| Block {
            label: label.to_owned(),
            has_headers: false,
            contents: contents.to_vec(),
        };
        assert_eq!(read, [block("A", &long), block("B C", b"x")]);
        assert_eq!(blocks(&encode("A", b"")).collect::<Vec<_>>(), [block("A", b"")]);
    }

    #[test]
    fn a_block_that_is_none_is_passed_over() {
        let good = encode("A", b"x");
        for bad in [
            "-----BEGIN A-----\n?\n-----END A-----\n",
            "-----BEGIN A-----\neA==\n-----END B-----\n",
            "-----BEGIN A\neA==\n-----END A-----\n",
            "-----BEGIN A-----\n",
            "-----BEGIN B-----\neA==\n",
            " -----BEGIN A-----\neA==\n-----END A-----\n",
        ] {
            let labels: Vec<String> = blocks(&format!("{bad}{good}")).map(|block| block.label).collect();
            assert_eq!(labels, ["A"], "{bad}");
            assert_eq!(blocks(bad).count(), 0, "{bad}");
        }
        let endless = "-----BEGIN A-----\n".repeat(100_000);
        assert_eq!(blocks(&endless).count(), 0, "and that is soon known");
        let headed = "-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\neA==\n-----END A-----\n";
        let headed: Vec<Block> = blocks(headed).collect();
        assert!(headed.len() == 1 && headed[0].has_headers && headed[0].contents == b"x", "{headed:?}");
    }
}
