//! A section of the file, and how values are taken out of it.
//!
//! Every function that takes a value notes what is wrong with it and goes on
//! with a default, so that one pass finds all faults; whether there were any
//! is asked at the end.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::fault::{Expected, Fault, quoted, shown};
use super::keys::{self, Keys};
use super::report::Found;
use super::value;
use super::words::Word;

/// One table of the file, of a known kind.
pub(super) struct Section<'t> {
    keys: &'static Keys,
    table: &'t DeTable<'t>,
    /// Where its header, or its braces, stand.
    pub(super) span: Range<usize>,
}

/// A value and where it stands.
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<'t> Section<'t> {
    /// The table as a section of this kind; notes the keys that it cannot have.
    pub(super) fn new(
        keys: &'static Keys,
        table: &'t DeTable<'t>,
        span: Range<usize>,
        found: &mut Found,
    ) -> Self {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if keys.valid.contains(&name) {
                continue;
            }
            let later = keys.later.iter().find(|(later, _)| *later == name);
            let fault = match later {
                Some((_, instead)) if keys.header.is_empty() => Fault::NotYet {
                    what: format!("[{name}]"),
                    instead: (*instead).into(),
                },
                Some((_, instead)) => Fault::NotYet {
                    what: format!("`{name}`"),
                    instead: (*instead).into(),
                },
                None => Fault::UnknownKey {
                    kind: if keys.header.is_empty() {
                        "section"
                    } else {
                        "key"
                    },
                    key: shown(name),
                    near: keys::nearest(name, keys.valid.iter().copied()),
                    home: keys::home(name),
                    valid: keys.valid,
                },
            };
            found.add(key.span(), fault);
        }
        Self { keys, table, span }
    }

    /// Whether the section has this key.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.table.contains_key(key)
    }

    /// The value of a key, if it is there.
    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        debug_assert!(
            self.keys.valid.contains(&key),
            "`{key}` is not a key of {}",
            self.keys.place
        );
        self.table.get(key)
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, key: &'static str, example: &'static str, found: &mut Found) {
        let fault = Fault::Missing {
            key,
            place: self.keys.place,
            example,
        };
        if self.span.is_empty() {
            found.add_nowhere(fault);
        } else {
            found.add(self.span.clone(), fault);
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &'static str, found: &mut Found) -> Option<At<&'t str>> {
        text(key, self.value(key)?, found)
    }

    /// A string that means something.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        found: &mut Found,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<At<T>> {
        let At { value, span } = self.text(key, found)?;
        parsed(parse(value), span, found)
    }

    /// A string that must be there and means something.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &'static str,
        found: &mut Found,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<At<T>> {
        if !self.has(key) {
            self.missing(key, example, found);
        }
        self.parsed(key, found, parse)
    }

    /// One of a few words.
    pub(super) fn word<T: Word>(&self, key: &'static str, default: T, found: &mut Found) -> T {
        self.word_at(key, found).map_or(default, |at| at.value)
    }

    /// One of a few words, and where it stands.
    pub(super) fn word_at<T: Word>(&self, key: &'static str, found: &mut Found) -> Option<At<T>> {
        self.parsed(key, found, |text| word(key, text))
    }

    /// A whole number.
    pub(super) fn number(
        &self,
        key: &'static str,
        allowed: RangeInclusive<u32>,
        found: &mut Found,
    ) -> Option<u32> {
        self.number_at(key, allowed, found).map(|at| at.value)
    }

    /// A whole number, and where it stands.
    pub(super) fn number_at(
        &self,
        key: &'static str,
        allowed: RangeInclusive<u32>,
        found: &mut Found,
    ) -> Option<At<u32>> {
        let (low, high) = allowed.clone().into_inner();
        let out_of_range = |found| Fault::OutOfRange {
            key,
            low,
            high,
            found,
        };
        let fits = |number| allowed.contains(&number);
        self.whole(key, low..=high, fits, out_of_range, found)
    }

    /// A whole number, or 0, which asks for nothing.
    pub(super) fn number_or_off(
        &self,
        key: &'static str,
        allowed: RangeInclusive<u32>,
        found: &mut Found,
    ) -> Option<At<u32>> {
        let (low, high) = allowed.clone().into_inner();
        let neither = |found| Fault::NeitherOffNorInRange {
            key,
            low,
            high,
            found,
        };
        let fits = |number| number == 0 || allowed.contains(&number);
        self.whole(key, 0..=high, fits, neither, found)
    }

    /// A whole number that fits; `span` is what one of another type is told.
    fn whole(
        &self,
        key: &'static str,
        span: RangeInclusive<u32>,
        fits: impl Fn(u32) -> bool,
        misfit: impl FnOnce(String) -> Fault,
        found: &mut Found,
    ) -> Option<At<u32>> {
        let value = self.value(key)?;
        let DeValue::Integer(written) = value.get_ref() else {
            let (low, high) = span.into_inner();
            let expected = Expected::Number { low, high };
            found.add(value.span(), wrong_type(key, expected, value));
            return None;
        };
        let number = integer(written).and_then(|number| u32::try_from(number).ok());
        match number.filter(|&number| fits(number)) {
            Some(number) => Some(At {
                value: number,
                span: value.span(),
            }),
            None => {
                found.add(value.span(), misfit(shown(&written.to_string())));
                None
            }
        }
    }

    /// A duration in a range.
    pub(super) fn duration(
        &self,
        key: &'static str,
        allowed: RangeInclusive<Duration>,
        found: &mut Found,
    ) -> Option<At<Duration>> {
        let (low, high) = allowed.into_inner();
        self.parsed(key, found, |text| {
            let duration = value::duration(key, text)?;
            if (low..=high).contains(&duration) {
                Ok(duration)
            } else {
                Err(Fault::DurationOutOfRange {
                    key,
                    low,
                    high,
                    found: duration,
                })
            }
        })
    }

    /// A duration in a range, or none, which asks for nothing.
    pub(super) fn duration_or_off(
        &self,
        key: &'static str,
        allowed: RangeInclusive<Duration>,
        found: &mut Found,
    ) -> Duration {
        self.duration_or_off_at(key, allowed, found)
            .map_or(Duration::ZERO, |at| at.value)
    }

    /// A duration in a range, or none, and where it stands.
    pub(super) fn duration_or_off_at(
        &self,
        key: &'static str,
        allowed: RangeInclusive<Duration>,
        found: &mut Found,
    ) -> Option<At<Duration>> {
        let (low, high) = allowed.into_inner();
        self.parsed(key, found, |text| {
            let duration = value::duration(key, text)?;
            if duration.is_zero() || (low..=high).contains(&duration) {
                Ok(duration)
            } else {
                Err(Fault::DurationNeitherOffNorInRange {
                    key,
                    low,
                    high,
                    found: duration,
                })
            }
        })
    }

    /// Yes or no.
    pub(super) fn truth(&self, key: &'static str, found: &mut Found) -> Option<bool> {
        let value = self.value(key)?;
        let truth = value.get_ref().as_bool();
        if truth.is_none() {
            found.add(value.span(), wrong_type(key, Expected::Truth, value));
        }
        truth
    }

    /// A path, by one of the functions of [`value`].
    pub(super) fn path(
        &self,
        key: &'static str,
        default: &str,
        found: &mut Found,
        parse: fn(&'static str, &str) -> Result<PathBuf, Fault>,
    ) -> PathBuf {
        self.parsed(key, found, |text| parse(key, text))
            .map_or_else(|| PathBuf::from(default), |at| at.value)
    }

    /// A list of strings; `None` if it is missing, not a list, or not of strings.
    pub(super) fn texts(
        &self,
        key: &'static str,
        found: &mut Found,
    ) -> Option<At<Vec<At<&'t str>>>> {
        let value = self.value(key)?;
        let DeValue::Array(list) = value.get_ref() else {
            found.add(value.span(), wrong_type(key, Expected::Texts, value));
            return None;
        };
        let texts: Vec<At<&str>> = list
            .iter()
            .filter_map(|item| text(key, item, found))
            .collect();
        (texts.len() == list.len()).then(|| At {
            value: texts,
            span: value.span(),
        })
    }

    /// A key whose only value in this version is the one that asks for nothing.
    pub(super) fn nothing(
        &self,
        key: &'static str,
        written: &'static str,
        found: &mut Found,
        is_nothing: impl FnOnce(&DeValue<'_>) -> Option<bool>,
    ) {
        let Some(value) = self.value(key) else { return };
        match is_nothing(value.get_ref()) {
            Some(true) => {}
            Some(false) => {
                let instead = format!("only `{key} = {written}` is, which is the default");
                found.add(
                    value.span(),
                    Fault::NotYet {
                        what: format!("`{key}`"),
                        instead,
                    },
                );
            }
            None => found.add(
                value.span(),
                wrong_type(key, Expected::Exactly(written), value),
            ),
        }
    }

    /// A section within this one.
    pub(super) fn section(
        &self,
        key: &'static str,
        keys: &'static Keys,
        found: &mut Found,
    ) -> Option<Section<'t>> {
        let value = self.value(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Section::new(keys, table, value.span(), found));
        }
        let expected = Expected::Section(keys.header);
        found.add(self.place_of(key), wrong_type(key, expected, value));
        None
    }

    /// The sections of one kind within this one.
    pub(super) fn sections(
        &self,
        key: &'static str,
        keys: &'static Keys,
        found: &mut Found,
    ) -> Vec<Section<'t>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let expected = Expected::Sections(keys.header);
        let DeValue::Array(list) = value.get_ref() else {
            found.add(self.place_of(key), wrong_type(key, expected, value));
            return Vec::new();
        };
        let section = |item: &'t Spanned<DeValue<'t>>| {
            if let DeValue::Table(table) = item.get_ref() {
                return Some(Section::new(keys, table, item.span(), found));
            }
            found.add(item.span(), wrong_type(key, expected, item));
            None
        };
        list.iter().filter_map(section).collect()
    }

    /// Where the value of a key is written.
    pub(super) fn value_span(&self, key: &'static str) -> Range<usize> {
        self.value(key)
            .map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// Where a key is written.
    fn place_of(&self, key: &'static str) -> Range<usize> {
        let entry = self.table.get_key_value(key);
        entry.map_or_else(|| self.span.clone(), |(key, _)| key.span())
    }
}

/// What a parse gave, or nothing and a fault noted.
pub(super) fn parsed<T>(
    result: Result<T, Fault>,
    span: Range<usize>,
    found: &mut Found,
) -> Option<At<T>> {
    match result {
        Ok(value) => Some(At { value, span }),
        Err(fault) => {
            found.add(span, fault);
            None
        }
    }
}

/// The value as a string.
fn text<'t>(
    key: &'static str,
    value: &'t Spanned<DeValue<'t>>,
    found: &mut Found,
) -> Option<At<&'t str>> {
    if let DeValue::String(text) = value.get_ref() {
        return Some(At {
            value: text,
            span: value.span(),
        });
    }
    found.add(value.span(), wrong_type(key, Expected::Text, value));
    None
}

/// What a word stands for.
fn word<T: Word>(key: &'static str, text: &str) -> Result<T, Fault> {
    if let Some((_, choice)) = T::CHOICES.iter().find(|(word, _)| *word == text) {
        return Ok(*choice);
    }
    let choices: Vec<&'static str> = T::CHOICES.iter().map(|(word, _)| *word).collect();
    if T::LATER.contains(&text) {
        let what = format!("`{key} = \"{text}\"`");
        let instead = format!("write {}", quoted(&choices));
        return Err(Fault::NotYet { what, instead });
    }
    let near = keys::nearest(text, choices.iter().copied());
    Err(Fault::UnknownWord {
        key,
        found: shown(text),
        near,
        choices,
    })
}

/// The fault of a value of another type than expected.
fn wrong_type(key: &'static str, expected: Expected, value: &Spanned<DeValue<'_>>) -> Fault {
    let meant = match (expected, value.get_ref()) {
        (Expected::Number { .. }, DeValue::String(text)) if text.parse::<u32>().is_ok() => {
            Some(format!("{text} without quotation marks"))
        }
        (Expected::Text, DeValue::Integer(number)) => {
            Some(format!("\"{}\"", shown(&number.to_string())))
        }
        (Expected::Truth, DeValue::String(text)) if matches!(text.as_ref(), "true" | "false") => {
            Some(format!("{text} without quotation marks"))
        }
        (Expected::Texts, DeValue::String(text)) => Some(format!("[\"{}\"]", shown(text))),
        (Expected::Section(header) | Expected::Sections(header), _) => {
            Some(format!("the header {header} before its keys"))
        }
        _ => None,
    };
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a single section",
    };
    Fault::WrongType {
        key,
        expected,
        found,
        meant,
    }
}

/// A whole number, if it is not larger than any that is used.
fn integer(written: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(written.as_str(), written.radix()).ok()
}
