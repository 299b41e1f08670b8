/* Status codes in words, and the last message of a runtime or of a thread. */
#include "runtime/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/runtime.h"

static _Thread_local char thread_text[DP_MESSAGE_SIZE];

const char *dp_strerror(dp_status status)
{
    switch (status) {
    case DP_OK: return "success";
    case DP_ERR_INVALID: return "invalid argument";
    case DP_ERR_NO_MEMORY: return "out of memory";
    case DP_ERR_UNSUPPORTED: return "not supported by this machine or build";
    case DP_ERR_SYSTEM: return "a system call failed";
    case DP_ERR_DAMAGED: return "a file is damaged or of another kind";
    }
    return "unknown status";
}

static void lock(dp_message *m)
{
    while (atomic_flag_test_and_set_explicit(&m->busy, memory_order_acquire)) {
    }
}

static void unlock(dp_message *m)
{
    atomic_flag_clear_explicit(&m->busy, memory_order_release);
}

dp_status dp_fail(dp_runtime *runtime, dp_status status, const char *format, ...)
{
    char text[DP_MESSAGE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!runtime) {
        memcpy(thread_text, text, sizeof text);
        return status;
    }
    lock(&runtime->message);
    memcpy(runtime->message.text, text, sizeof text);
    unlock(&runtime->message);
    return status;
}

const char *dp_last_error(const dp_runtime *runtime, char *buffer, size_t size)
{
    if (!buffer || !size) return "";
    char text[DP_MESSAGE_SIZE];
    if (runtime) {
        dp_message *const m = (dp_message *)&runtime->message; /* the flag is not part of the runtime's visible state */
        lock(m);
        memcpy(text, m->text, sizeof text);
        unlock(m);
    } else {
        memcpy(text, thread_text, sizeof text);
    }
    snprintf(buffer, size, "%s", text);
    return buffer;
}
