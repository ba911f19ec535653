//! DPDK's error numbers: errno's, and a few of its own.

use std::ffi::{CStr, c_int};
use std::fmt;

use weir_dpdk_sys as sys;

/// Why a DPDK call failed: a positive `errno`, or one of DPDK's own numbers from 1001 on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What the calling thread's last failed DPDK call left in `rte_errno`.
    pub(crate) fn last() -> Self {
        // SAFETY: reads a thread-local variable.
        Self(unsafe { sys::shim_errno() })
    }

    /// Reads a return code: negative is an error, of which DPDK calls `-1` with the number in `rte_errno` or the number itself.
    pub(crate) fn check(code: c_int) -> Result<c_int, Self> {
        match code {
            0.. => Ok(code),
            -1 => Err(match Self::last() {
                Errno(0) => Errno(1),
                last => last,
            }),
            code => Err(Self(code.saturating_neg())),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: `rte_strerror` returns a NUL-terminated string, static or in a buffer of the calling thread, which is read
        // before the thread can call it again.
        let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.0)) };
        write!(f, "{} ({})", text.to_string_lossy(), self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_texts() {
        assert_eq!(Errno(19).to_string(), "No such device (19)");
        assert_eq!(Errno::check(-12), Err(Errno(12)));
        assert_eq!(Errno::check(3), Ok(3));
    }
}
