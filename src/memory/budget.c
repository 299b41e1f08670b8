/* Counting without a lock: a compare-and-swap per allocation, so that no thread sees what another only tried. */
#include "memory/budget.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/scratch.h"
#include "runtime/runtime.h"

static _Thread_local size_t refused; /* bytes that the limit refused this thread last; 0: its last wish was granted */

static bool try_take(dp_budget *b, size_t bytes)
{
    size_t used = atomic_load(&b->used);
    do {
        if (b->limit && (bytes > b->limit || used > b->limit - bytes)) return false;
    } while (!atomic_compare_exchange_weak(&b->used, &used, used + bytes));
    size_t peak = atomic_load(&b->peak);
    while (peak < used + bytes && !atomic_compare_exchange_weak(&b->peak, &peak, used + bytes)) {
    }
    return true;
}

bool dp_budget_take(dp_runtime *rt, size_t bytes)
{
    refused = 0;
    if (try_take(&rt->budget, bytes)) return true;
    dp_scratch_free_idle(rt);
    if (try_take(&rt->budget, bytes)) return true;
    refused = bytes;
    return false;
}

void dp_budget_give(dp_runtime *rt, size_t bytes)
{
    atomic_fetch_sub(&rt->budget.used, bytes);
}

void *dp_heap_resize(dp_runtime *rt, void *p, size_t old_bytes, size_t bytes)
{
    if (bytes > old_bytes && !dp_budget_take(rt, bytes - old_bytes)) return NULL;
    if (!bytes) {
        free(p);
    } else {
        char *const moved = realloc(p, bytes);
        if (!moved) {
            if (bytes > old_bytes) dp_budget_give(rt, bytes - old_bytes);
            return NULL;
        }
        if (bytes > old_bytes) memset(moved + old_bytes, 0, bytes - old_bytes);
        p = moved;
    }
    if (bytes < old_bytes) dp_budget_give(rt, old_bytes - bytes);
    return bytes ? p : NULL;
}

dp_status dp_no_memory(dp_runtime *rt, const char *format, ...)
{
    char text[DP_MESSAGE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!refused) return dp_fail(rt, DP_ERR_NO_MEMORY, "%s", text);
    return dp_fail(rt, DP_ERR_NO_MEMORY, "%s: memory_limit is %zu bytes, %zu are in use, %zu more were needed", text,
                   rt->budget.limit, atomic_load(&rt->budget.used), refused);
}
