//! DPDK's log: every line goes to the program's sink, and the latest are kept so that an error can quote its cause.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;
use weir_dpdk_sys as sys;

use crate::errno::Errno;

/// Sends DPDK's log to `sink` from now on; EAL's own default (syslog and stderr) is not used.
pub(crate) fn open(sink: fn(&str)) -> Result<(), Errno> {
    let mut log = LOG.lock();
    log.sink = Some(sink);
    if log.open {
        return Ok(());
    }
    // SAFETY: `write` has the signature that `fopencookie` wants and can be called from any thread at any time.
    Errno::check(unsafe { sys::shim_log_to(Some(write)) })?;
    log.open = true;
    Ok(())
}

/// Runs `call` and returns with its result what DPDK logged meanwhile, shortened to the last lines.
pub(crate) fn quoting<T>(call: impl FnOnce() -> T) -> (T, String) {
    let before = LOG.lock().written;
    let result = call();
    let log = LOG.lock();
    let fresh = log.written.saturating_sub(before).min(log.recent.len());
    let tail = log.recent.len() - fresh;
    let tail = (tail..=log.recent.len()).find(|&at| log.recent.is_char_boundary(at)).unwrap_or(log.recent.len());
    (result, log.recent[tail..].trim_end().to_owned())
}

struct Log {
    open: bool,
    sink: Option<fn(&str)>,
    /// The last [`KEPT`] bytes or so.
    recent: String,
    /// Bytes ever written.
    written: usize,
}

static LOG: Mutex<Log> = Mutex::new(Log { open: false, sink: None, recent: String::new(), written: 0 });

const KEPT: usize = 4096;

unsafe extern "C" fn write(_cookie: *mut c_void, text: *const c_char, length: usize) -> isize {
    // SAFETY: stdio passes a buffer of `length` readable bytes that lives during the call.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    let text = String::from_utf8_lossy(bytes);
    // Nothing may unwind into C. A panicking sink costs its line.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let sink = {
            let mut log = LOG.lock();
            log.recent.push_str(&text);
            log.written += text.len();
            if log.recent.len() > 2 * KEPT {
                let cut = log.recent.len() - KEPT;
                let cut = (cut..).find(|&at| log.recent.is_char_boundary(at)).unwrap_or(0);
                log.recent.drain(..cut);
            }
            log.sink
        };
        // Outside the lock: the sink may make DPDK log.
        if let Some(sink) = sink {
            sink(&text);
        }
    }));
    isize::try_from(length).unwrap_or(isize::MAX)
}
