//! Reads and writes of big-endian fields that never panic: what lies outside reads as zero and is not written.

use std::ops::Range;

/// The byte at `at`.
#[inline]
pub(super) fn u8_at(data: &[u8], at: usize) -> u8 {
    data.get(at).copied().unwrap_or(0)
}

/// The big-endian 16-bit field at `at`.
#[inline]
pub(super) fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(data, at))
}

/// The big-endian 32-bit field at `at`.
#[inline]
pub(super) fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(data, at))
}

/// `N` bytes from `at` on.
#[inline]
pub(super) fn array_at<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    data.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

/// The part of `data` in `range`, cut at the end of `data`; empty when it lies outside.
#[inline]
pub(super) fn slice(data: &[u8], range: Range<usize>) -> &[u8] {
    let end = range.end.min(data.len());
    data.get(range.start..end).unwrap_or(&[])
}

/// As [`slice`], to write to.
#[inline]
pub(super) fn slice_mut(data: &mut [u8], range: Range<usize>) -> &mut [u8] {
    let end = range.end.min(data.len());
    data.get_mut(range.start..end).unwrap_or(&mut [])
}

/// Writes `value` from `at` on, if it fits.
#[inline]
pub(super) fn put(data: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = data.get_mut(at..).and_then(|rest| rest.get_mut(..value.len())) {
        place.copy_from_slice(value);
    }
}

/// Writes a byte.
#[inline]
pub(super) fn put_u8(data: &mut [u8], at: usize, value: u8) {
    put(data, at, &[value]);
}

/// Writes a big-endian 16-bit field.
#[inline]
pub(super) fn put_u16(data: &mut [u8], at: usize, value: u16) {
    put(data, at, &value.to_be_bytes());
}

/// Writes a big-endian 32-bit field.
#[inline]
pub(super) fn put_u32(data: &mut [u8], at: usize, value: u32) {
    put(data, at, &value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_reads_as_zero_and_is_not_written() {
        let mut data = [1, 2, 3];
        assert_eq!(u16_at(&data, 1), 0x0203);
        assert_eq!(u16_at(&data, 2), 0);
        assert_eq!(u32_at(&data, usize::MAX), 0);
        assert_eq!(slice(&data, 2..9), [3]);
        assert!(slice(&data, 7..9).is_empty());
        put_u16(&mut data, 2, 0xffff);
        assert_eq!(data, [1, 2, 3]);
        put_u16(&mut data, 1, 0xabcd);
        assert_eq!(data, [1, 0xab, 0xcd]);
    }
}
