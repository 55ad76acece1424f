//! A command line to its words, as a shell would without its tricks (Python's shlex, which supervisord reads commands with).

/// Why a line is no list of words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("it ends with a backslash")]
    Trailing,
}

/// The words of `text`: quotes and backslashes are taken away, and nothing is expanded.
pub(crate) fn split(text: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            letter if letter.is_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(letters.next().ok_or(WordsError::Trailing)?),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next().ok_or(WordsError::OpenQuote)? {
                        '\'' => break,
                        letter => word.push(letter),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next().ok_or(WordsError::OpenQuote)? {
                        '"' => break,
                        '\\' => match letters.next().ok_or(WordsError::OpenQuote)? {
                            letter @ ('"' | '\\') => word.push(letter),
                            letter => word.extend(['\\', letter]),
                        },
                        letter => word.push(letter),
                    }
                }
            }
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Ok(words)
}

/// A word that a shell would act on and that nothing acts on here.
pub(crate) fn shell_trick(words: &[String]) -> Option<&str> {
    let is_trick = |word: &&String| {
        matches!(word.as_str(), "|" | "||" | "&" | "&&" | ";" | ">" | ">>" | "<" | "2>&1")
            || word.contains("$(")
            || word.contains('`')
    };
    words.iter().find(is_trick).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_are_taken_away() {
        for (text, words) in [
            ("a  b", &["a", "b"][..]),
            (r#"a "b c" 'd "e'"#, &["a", "b c", "d \"e"]),
            (r#"a\ b "c\"d\n" ''"#, &["a b", "c\"d\\n", ""]),
            ("", &[]),
        ] {
            assert_eq!(split(text).expect("words"), words, "{text}");
        }
        assert_eq!(split("a 'b"), Err(WordsError::OpenQuote));
        assert_eq!(split("a \"b"), Err(WordsError::OpenQuote));
        assert_eq!(split("a \\"), Err(WordsError::Trailing));
        assert_eq!(shell_trick(&split("a && b").expect("words")), Some("&&"));
        assert_eq!(shell_trick(&split("sh -c 'a && b'").expect("words")), None);
    }
}
