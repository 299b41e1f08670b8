/* Running a function on the runtime's OpenMP team, and handing out work to its members. */
#ifndef DP_RUNTIME_TEAM_H
#define DP_RUNTIME_TEAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "doublep/doublep.h"

/* Once per process, before the first team: after a fork() the thread that is left knows that its workers are not. False
 * where there is no memory. */
bool dp_team_watch_forks(void);

/* Members of a team that the calling thread would start, at most. */
int dp_team_size(const dp_runtime *runtime);

/* fn(argument, thread, n_threads) on every member; n_threads is the team that really came. A oneDNN call inside runs on
 * the calling member alone. */
typedef void (*dp_team_fn)(void *argument, int thread, int n_threads);
void dp_team_run(const dp_runtime *runtime, dp_team_fn fn, void *argument);

/* Gives the workers that were bound for this runtime, and that serve the calling thread, their freedom back. */
void dp_team_unbind(const dp_runtime *runtime);

/* The NUMA node (logical index) where a member's work should lie. */
int dp_team_node(const dp_runtime *runtime, int thread, int n_threads);

/* A shared counter: members take the numbers 0 .. n - 1, each once. What is done never depends on who does it. */
typedef struct dp_ticket {
    _Alignas(64) atomic_size_t next;
} dp_ticket;

/* The first of n consecutive numbers. */
static inline size_t dp_tickets_take(dp_ticket *ticket, size_t n)
{
    return atomic_fetch_add_explicit(&ticket->next, n, memory_order_relaxed);
}

static inline size_t dp_ticket_take(dp_ticket *ticket)
{
    return dp_tickets_take(ticket, 1);
}

#endif
