/* Versioned structs: a caller's struct may be shorter (built against an older header) than ours, never longer. */
#ifndef DP_RUNTIME_STRUCTS_H
#define DP_RUNTIME_STRUCTS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The size that a caller's struct claims; it is read byte-wise since the struct's type is not known here. */
static inline uint32_t dp_struct_size(const void *s)
{
    uint32_t size;
    memcpy(&size, s, sizeof size);
    return size;
}

static inline bool dp_struct_size_ok(const void *s, size_t ours)
{
    return s && dp_struct_size(s) >= sizeof(uint32_t) && dp_struct_size(s) <= ours;
}

/* Copies the fields that the caller knows over our defaults; false where the size makes no sense. */
static inline bool dp_struct_in(void *ours, const void *callers, size_t size)
{
    if (!dp_struct_size_ok(callers, size)) return false;
    memcpy(ours, callers, dp_struct_size(callers));
    memcpy(ours, &(uint32_t){(uint32_t)size}, sizeof(uint32_t));
    return true;
}

/* Copies as much of our struct as the caller's has room for, its struct_size kept. */
static inline bool dp_struct_out(void *callers, const void *ours, size_t size)
{
    if (!dp_struct_size_ok(callers, size)) return false;
    const uint32_t room = dp_struct_size(callers);
    memcpy((char *)callers + sizeof room, (const char *)ours + sizeof room, room - sizeof room);
    return true;
}

#define DP_STRUCT_IN(ours, callers) dp_struct_in((ours), (callers), sizeof *(ours))
#define DP_STRUCT_OUT(callers, ours) dp_struct_out((callers), (ours), sizeof *(ours))

#endif
