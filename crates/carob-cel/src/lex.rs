//! Tokens of an expression (cel-go parser/gen/CEL.g4).

use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Ident(Arc<str>),
    /// An identifier between backticks: any name of a field.
    Escaped(Arc<str>),
    Int(String),
    Uint(String),
    Double(String),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// An operator or a mark, and the words `in`, `true`, `false`, `null`.
    Mark(&'static str),
    End,
}

#[derive(Debug, Clone)]
pub(crate) struct Spanned {
    pub(crate) token: Token,
    /// The first code point of the token.
    pub(crate) at: usize,
    /// Code points of the token, for messages.
    pub(crate) len: usize,
}

/// What is wrong with the text at a place.
#[derive(Debug)]
pub(crate) struct LexError {
    pub(crate) at: usize,
    pub(crate) message: String,
}

const MARKS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%", "=",
];

/// Reads the whole text. What cannot be read is reported and passed over.
pub(crate) fn tokens(text: &[char], faults: &mut Vec<LexError>) -> Vec<Spanned> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at;
        match lexer.next() {
            Ok(token) => {
                let end = token == Token::End;
                out.push(Spanned { token, at, len: lexer.at - at });
                if end {
                    return out;
                }
            }
            Err(message) => {
                // Progress is certain: at least one code point is passed over.
                lexer.at = lexer.at.max(at + 1);
                faults.push(LexError { at, message });
            }
        }
    }
}

struct Lexer<'a> {
    text: &'a [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn skip_blank(&mut self) {
        while let Some(character) = self.peek(0) {
            match character {
                ' ' | '\t' | '\r' | '\n' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == Some('/') => {
                    while self.peek(0).is_some_and(|character| character != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn next(&mut self) -> Result<Token, String> {
        let Some(first) = self.peek(0) else { return Ok(Token::End) };
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_some_and(|next| next.is_ascii_digit())) {
            return Ok(self.number());
        }
        if let Some((raw, bytes, skip)) = self.string_prefix() {
            return self.string(raw, bytes, skip);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(self.word());
        }
        if first == '`' {
            return self.escaped();
        }
        for mark in MARKS {
            if mark.chars().enumerate().all(|(i, character)| self.peek(i) == Some(character)) && mark != "=" {
                self.at += mark.len();
                return Ok(Token::Mark(mark));
            }
        }
        self.at += 1;
        Err(format!("token recognition error at: '{first}'"))
    }

    fn word(&mut self) -> Token {
        let from = self.at;
        while self.peek(0).is_some_and(|character| character.is_ascii_alphanumeric() || character == '_') {
            self.at += 1;
        }
        let word: String = self.text[from..self.at].iter().collect();
        match word.as_str() {
            "in" => Token::Mark("in"),
            "true" => Token::Mark("true"),
            "false" => Token::Mark("false"),
            "null" => Token::Mark("null"),
            _ => Token::Ident(word.into()),
        }
    }

    fn escaped(&mut self) -> Result<Token, String> {
        let from = self.at + 1;
        let allowed = |character: char| character.is_ascii_alphanumeric() || "_.-/ ".contains(character);
        let len = self.text[from..].iter().take_while(|character| allowed(**character)).count();
        if len == 0 || self.text.get(from + len) != Some(&'`') {
            self.at += 1;
            return Err("token recognition error at: '`'".to_owned());
        }
        self.at = from + len + 1;
        Ok(Token::Escaped(self.text[from..from + len].iter().collect::<String>().into()))
    }

    fn digits(&mut self, hex: bool) -> usize {
        let from = self.at;
        while self.peek(0).is_some_and(|c| if hex { c.is_ascii_hexdigit() } else { c.is_ascii_digit() }) {
            self.at += 1;
        }
        self.at - from
    }

    fn number(&mut self) -> Token {
        let from = self.at;
        let collect = |lexer: &Self, to: usize| lexer.text[from..to].iter().collect::<String>();
        if self.peek(0) == Some('0') && self.peek(1) == Some('x') && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit())
        {
            self.at += 2;
            self.digits(true);
        } else {
            self.digits(false);
            let mut double = false;
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                self.at += 1;
                self.digits(false);
                double = true;
            }
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if matches!(self.peek(0), Some('e' | 'E')) && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                self.at += 1 + sign;
                self.digits(false);
                double = true;
            }
            if double {
                return Token::Double(collect(self, self.at));
            }
        }
        let text = collect(self, self.at);
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Uint(text);
        }
        Token::Int(text)
    }

    /// Whether a string begins here: raw, of bytes, and how long its prefix is.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let quote = |ahead| matches!(self.peek(ahead), Some('"' | '\''));
        let is = |ahead, letters: &str| self.peek(ahead).is_some_and(|character| letters.contains(character));
        if quote(0) {
            return Some((false, false, 0));
        }
        if quote(1) && is(0, "rR") {
            return Some((true, false, 1));
        }
        if quote(1) && is(0, "bB") {
            return Some((false, true, 1));
        }
        (quote(2) && is(0, "bB") && is(1, "rR")).then_some((true, true, 2))
    }

    fn string(&mut self, raw: bool, bytes: bool, skip: usize) -> Result<Token, String> {
        let from = self.at;
        self.at += skip;
        let Some(quote) = self.peek(0) else { return Ok(Token::End) };
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let mut text: Vec<u8> = Vec::new();
        loop {
            let Some(character) = self.peek(0) else { return Err(self.unended(from)) };
            if character == quote && (!triple || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote))) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if !triple && matches!(character, '\n' | '\r') {
                return Err(self.unended(from));
            }
            self.at += 1;
            if character == '\\' && !raw {
                self.escape(bytes, &mut text).map_err(|()| self.unended(from))?;
            } else {
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Bytes(text.into()));
        }
        // Only the escapes of byte strings make bytes that are not text.
        String::from_utf8(text).map(|text| Token::String(text.into())).map_err(|_| self.unended(from))
    }

    fn unended(&self, from: usize) -> String {
        let text: String = self.text[from..self.at.min(self.text.len())].iter().collect();
        format!("token recognition error at: '{text}'")
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), ()> {
        let character = self.peek(0).ok_or(())?;
        self.at += 1;
        let simple = match character {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => character as u8,
            'x' | 'X' => return self.code(16, 2, 0, bytes, out),
            'u' if !bytes => return self.code(16, 4, 0, false, out),
            'U' if !bytes => return self.code(16, 8, 0, false, out),
            '0'..='3' => return self.code(8, 2, character as u32 - '0' as u32, bytes, out),
            _ => return Err(()),
        };
        out.push(simple);
        Ok(())
    }

    fn code(&mut self, radix: u32, digits: usize, first: u32, bytes: bool, out: &mut Vec<u8>) -> Result<(), ()> {
        let mut code = first;
        for _ in 0..digits {
            let digit = self.peek(0).and_then(|character| character.to_digit(radix)).ok_or(())?;
            code = code.checked_mul(radix).and_then(|code| code.checked_add(digit)).ok_or(())?;
            self.at += 1;
        }
        if bytes {
            out.push(u8::try_from(code).map_err(|_| ())?);
        } else {
            let character = char::from_u32(code).ok_or(())?;
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
