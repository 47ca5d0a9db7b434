//! The columns of one row, decoded as they are walked.

use super::DecodeError;
use super::reader::Reader;

/// One column of a row as the WAL carried it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column<'a> {
    /// SQL NULL.
    Null,
    /// A value stored out of line (TOAST) that the statement did not touch: the WAL does not
    /// carry it.
    Unchanged,
    /// The value in the type's text format, in the client encoding.
    Text(&'a [u8]),
    /// The value in the type's binary format; sent only when asked for.
    Binary(&'a [u8]),
}

/// The columns of one row: checked when the message was decoded, walked without allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    /// Exactly `count` well-formed columns.
    columns: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Reads a tuple and checks the form of each column.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = reader.count("the number of columns")?;
        let from = reader.rest();
        for _ in 0..count {
            column(reader)?;
        }
        let length = from.len().saturating_sub(reader.rest().len());
        let columns = from.get(..length).unwrap_or_default();
        Ok(Self { count, columns })
    }

    /// Appends a row in the form in which the stream carries it; `None`, with nothing of use
    /// appended, when it has more columns or a larger value than a row can have.
    pub(in crate::capture) fn write<'v>(
        values: impl ExactSizeIterator<Item = Option<&'v str>>,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        out.extend_from_slice(&i16::try_from(values.len()).ok()?.to_be_bytes());
        for value in values {
            match value {
                None => out.push(b'n'),
                Some(value) => {
                    out.push(b't');
                    out.extend_from_slice(&i32::try_from(value.len()).ok()?.to_be_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
            }
        }
        Some(())
    }

    /// Reads what [`Tuple::write`] wrote.
    pub(in crate::capture) fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::read(&mut Reader::new(bytes))
    }

    /// How many columns the row has.
    pub fn len(self) -> usize {
        usize::from(self.count)
    }

    /// Whether the row has no column, which PostgreSQL allows.
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The columns in table order.
    pub fn columns(self) -> Columns<'a> {
        Columns { reader: Reader::new(self.columns) }
    }
}

/// Walks the columns of a [`Tuple`].
#[derive(Debug)]
pub struct Columns<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    fn next(&mut self) -> Option<Column<'a>> {
        // The columns were checked by `Tuple::read`: the only error left is their end.
        column(&mut self.reader).ok()
    }
}

fn column<'a>(reader: &mut Reader<'a>) -> Result<Column<'a>, DecodeError> {
    let kind = "a column kind: 'n', 'u', 't' or 'b'";
    let value = "the length and bytes of a column";
    Ok(match reader.rest().first() {
        Some(b'n') => reader.u8(kind).map(|_| Column::Null)?,
        Some(b'u') => reader.u8(kind).map(|_| Column::Unchanged)?,
        Some(b't') => {
            reader.u8(kind)?;
            Column::Text(reader.bytes(value)?)
        }
        Some(b'b') => {
            reader.u8(kind)?;
            Column::Binary(reader.bytes(value)?)
        }
        _ => return reader.expected(kind),
    })
}
