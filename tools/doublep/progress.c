/* progress.c: see progress.h. */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

enum {
    BAR_WIDTH = 40,
    LINE_STEP_PERCENT = 25,
    LINES_FROM = 4096, /* shorter steps are done before anyone asks */
};
static const uint64_t redraw_ns = 100000000;

void progress_start(progress *p, const char *label)
{
    *p = (progress){.label = label,
                    .terminal = isatty(STDERR_FILENO) != 0,
                    .start_ns = clock_ns(),
                    .next_percent = LINE_STEP_PERCENT};
}

static void draw_bar(const progress *p, size_t done, size_t total, double rate)
{
    char bar[BAR_WIDTH + 1];
    const size_t filled = done * BAR_WIDTH / total;
    memset(bar, '#', filled);
    memset(bar + filled, '.', BAR_WIDTH - filled);
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %3zu %%  %zu of %zu, %.0f/s \033[K", p->label, bar, done * 100 / total, done, total, rate);
    fflush(stderr);
}

void progress_show(void *user, size_t done, size_t total)
{
    progress *const p = user;
    const uint64_t now = clock_ns();
    const double rate = (double)done * 1e9 / (double)(now - p->start_ns + 1);
    if (total == 0)
        return;
    if (p->terminal) {
        if (now - p->drawn_ns >= redraw_ns || done == total) {
            draw_bar(p, done, total, rate);
            p->drawn_ns = now;
        }
        return;
    }
    const unsigned percent = (unsigned)(done * 100 / total);
    if (total < LINES_FROM || percent < p->next_percent)
        return;
    fprintf(stderr, "%s %u %%, %.0f tokens/s\n", p->label, percent, rate);
    p->next_percent = percent / LINE_STEP_PERCENT * LINE_STEP_PERCENT + LINE_STEP_PERCENT;
}

void progress_end(progress *p)
{
    if (p->terminal && p->drawn_ns)
        fprintf(stderr, "\r\033[K");
}
