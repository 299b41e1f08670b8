/* Error reporting: every failing path goes through dp_fail, which keeps the message on the runtime (or, while there is
 * none yet, in the calling thread) and hands the status on. */
#ifndef DP_RUNTIME_ERROR_H
#define DP_RUNTIME_ERROR_H

#include <stdatomic.h>

#include "doublep/doublep.h"

enum { DP_MESSAGE_SIZE = 256 };

typedef struct dp_message {
    atomic_flag busy; /* held while the text is copied in or out: error paths only */
    char text[DP_MESSAGE_SIZE];
} dp_message;

/* Stores the formatted message (on the thread where runtime is NULL) and returns status. */
dp_status dp_fail(dp_runtime *runtime, dp_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
