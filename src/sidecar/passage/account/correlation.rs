//! A correlation id as it is kept until its call ends: those of the usual form without memory of
//! their own.

/// Bytes of a UUID as text: what ids are where nobody has chosen another.
const USUAL: usize = 36;
/// Most bytes that are kept: as long as an id may be.
const MOST: usize = 128;

/// An id, or none.
#[derive(Debug, Default)]
pub(super) enum Correlation {
    #[default]
    None,
    /// Text of the usual length.
    Usual([u8; USUAL]),
    /// Any other text.
    Other(Box<str>),
}

impl Correlation {
    /// The id in a field; what is no text is none.
    pub(super) fn of(value: Option<&[u8]>) -> Self {
        let Some(value) = value.filter(|value| !value.is_empty() && value.is_ascii()) else {
            return Self::None;
        };
        if let Ok(usual) = value.try_into() {
            return Self::Usual(usual);
        }
        let value = &value[..value.len().min(MOST)];
        Self::Other(String::from_utf8_lossy(value).into())
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Usual(text) => str::from_utf8(text).ok(),
            Self::Other(text) => Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_as_they_came_within_the_bound() {
        let uuid = "0199c0de-0000-7000-8000-000000000001";
        let long = "x".repeat(MOST + 1);
        for (value, kept) in [
            (uuid, Some(uuid)),
            ("work-1", Some("work-1")),
            (&long, Some(&long[..MOST])),
            ("", None),
            ("\u{e9}", None),
        ] {
            let found = Correlation::of(Some(value.as_bytes()));
            assert_eq!(found.text(), kept, "{value}");
        }
        assert_eq!(Correlation::of(None).text(), None);
    }
}
