/* Whole pages from the system: aligned, zeroed, on huge pages where wanted, bound to a NUMA node where wanted. */
#ifndef DP_MEMORY_PAGES_H
#define DP_MEMORY_PAGES_H

#include <stddef.h>

#include "doublep/doublep.h"

/* NUMA node to bind to, or: */
enum { DP_NODE_INTERLEAVED = -1, DP_NODE_ANY = -2 };

/* Size of a transparent huge page, 0 where the kernel gives none to madvise. */
size_t dp_huge_page_bytes(void);

/* The page size that dp_pages_alloc works in for this runtime and size; bytes rounded up to it. */
size_t dp_page_bytes(const dp_runtime *runtime, size_t bytes);
size_t dp_pages_round(const dp_runtime *runtime, size_t bytes);

/* NULL where there is no memory. bytes must come from dp_pages_round. Counted in the runtime's budget. */
void *dp_pages_alloc(dp_runtime *runtime, size_t bytes, int node);
void dp_pages_free(dp_runtime *runtime, void *pages, size_t bytes);

/* The same, but only address space until it is touched: the caller counts what it uses. */
void *dp_pages_map(const dp_runtime *runtime, size_t bytes, int node);
void dp_pages_unmap(void *pages, size_t bytes);

/* The bytes of a file from an offset on, a multiple of DP_FILE_PAGE, as private memory: written to, they are the process's
 * own, and the file stays as it is. NULL where there is no memory. */
enum { DP_FILE_PAGE = 1 << 16 }; /* the largest page size that Linux has anywhere */
void *dp_pages_map_file(int file, size_t offset, size_t bytes);

/* Gives the memory behind some of the pages back; they stay, with indeterminate contents. */
void dp_pages_discard(void *pages, size_t bytes);

#endif
