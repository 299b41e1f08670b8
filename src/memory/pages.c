/* mmap, madvise and hwloc's memory policy. */
#include "memory/pages.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory/budget.h"
#include "runtime/runtime.h"

size_t dp_huge_page_bytes(void)
{
    char text[128] = "";
    FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!f) return 0;
    const size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    if (!n || strstr(text, "[never]")) return 0;
    unsigned long bytes = 0;
    f = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "r");
    if (!f) return 0;
    if (fscanf(f, "%lu", &bytes) != 1) bytes = 0;
    fclose(f);
    return bytes;
}

/* Small requests stay on ordinary pages: rounding them up to a huge page would waste more than it saves. */
size_t dp_page_bytes(const dp_runtime *rt, size_t bytes)
{
    return rt->huge_page && bytes >= rt->huge_page / 2 ? rt->huge_page : (size_t)sysconf(_SC_PAGESIZE);
}

size_t dp_pages_round(const dp_runtime *rt, size_t bytes)
{
    const size_t page = dp_page_bytes(rt, bytes);
    return bytes > SIZE_MAX - page ? 0 : (bytes + page - 1) / page * page;
}

void *dp_pages_map(const dp_runtime *rt, size_t bytes, int node)
{
    const size_t page = dp_page_bytes(rt, bytes), ordinary = (size_t)sysconf(_SC_PAGESIZE);
    if (!bytes || bytes > SIZE_MAX - page) return NULL;
    /* For huge pages over-allocate by one and give the ends back, so that the area starts on their boundary. Ordinary
     * ones are taken as they come: neighbours then merge into one mapping, of which a process has only so many. */
    const size_t whole = page > ordinary ? bytes + page : bytes;
    char *const mapped = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    char *const start = (char *)(((uintptr_t)mapped + page - 1) / page * page);
    const size_t before = (size_t)(start - mapped), after = whole - before - bytes;
    if (before) munmap(mapped, before);
    if (after) munmap(start + bytes, after);
    if (page == rt->huge_page) (void)madvise(start, bytes, MADV_HUGEPAGE);
    if (node != DP_NODE_ANY) (void)dp_topology_place(&rt->topology, start, bytes, node);
    return start;
}

void *dp_pages_map_file(int file, size_t offset, size_t bytes)
{
    void *const mapped =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, (off_t)offset);
    if (mapped == MAP_FAILED) return NULL;
    (void)madvise(mapped, bytes, MADV_WILLNEED); /* the system begins to read */
    return mapped;
}

void dp_pages_unmap(void *pages, size_t bytes)
{
    if (pages) munmap(pages, bytes);
}

void *dp_pages_alloc(dp_runtime *rt, size_t bytes, int node)
{
    if (!dp_budget_take(rt, bytes)) return NULL;
    void *const pages = dp_pages_map(rt, bytes, node);
    if (!pages) dp_budget_give(rt, bytes);
    return pages;
}

void dp_pages_free(dp_runtime *rt, void *pages, size_t bytes)
{
    if (!pages) return;
    dp_pages_unmap(pages, bytes);
    dp_budget_give(rt, bytes);
}

void dp_pages_discard(void *pages, size_t bytes)
{
    (void)madvise(pages, bytes, MADV_DONTNEED);
}
