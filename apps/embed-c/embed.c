/* A complete host program over edgemoe.h: a model, a budget, a question; the answer streams to stdout.
 *
 *   embed MODEL BUDGET_MIB [options] PROMPT
 *     --cache DIR      folder for derived data (default: ./edgemoe-cache)
 *     --system TEXT    a system message
 *     --raw            continue the prompt instead of answering it
 *     --template NAME  a chat template by name ("chatml"), for a model whose own is not recognised
 *     --max-tokens N   --temp T   --top-k N   --top-p P   --min-p P   --seed N   --ctx N   --threads N   --stop TEXT
 *     --tokens         the ids of all tokens, after the answer, on stderr
 *
 * Ctrl-C ends the answer; what it cost is told on stderr either way. Exit status: 0, 1 an error, 2 wrong arguments,
 * 130 cancelled. Needs C11, edgemoe.h and the libraries: see build.sh. Ctrl-C differs between
 * systems, and has its own section.
 */
#define _POSIX_C_SOURCE 200809L

#include <edgemoe.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <windows.h>
#else
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif

#define MIB ((uint64_t)1 << 20)
#define MAX_STOP 8

struct options {
    const char *model, *cache, *system, *prompt, *chat_template;
    int raw, tokens;
    emoe_setup setup;
    emoe_answer_params answer;
    emoe_sampler_params sampler;
    const char *stop[MAX_STOP];
};

/* A number after a flag; ends the program when it is none. */
static double number(const char *flag, const char *text) {
    char *end;
    double const value = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end != 0 || value < 0) {
        fprintf(stderr, "embed: %s wants a number, not `%s`\n", flag, text ? text : "");
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv) {
    struct options o = {.cache = "edgemoe-cache"};
    o.setup.struct_size = sizeof o.setup;
    o.answer.struct_size = sizeof o.answer;
    o.sampler = (emoe_sampler_params){
        .struct_size = sizeof o.sampler, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1};
    const char *place[3] = {0};
    int n_place = 0;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--raw") == 0 || strcmp(a, "--tokens") == 0) {
            *(a[2] == 'r' ? &o.raw : &o.tokens) = 1;
        } else if (strncmp(a, "--", 2) != 0) {
            if (n_place == 3) break;
            place[n_place++] = a;
        } else {
            if (strcmp(a, "--cache") == 0)
                o.cache = v;
            else if (strcmp(a, "--system") == 0)
                o.system = v;
            else if (strcmp(a, "--template") == 0)
                o.chat_template = v;
            else if (strcmp(a, "--max-tokens") == 0)
                o.answer.max_tokens = (uint32_t)number(a, v);
            else if (strcmp(a, "--temp") == 0)
                o.sampler.temp = (float)number(a, v);
            else if (strcmp(a, "--top-k") == 0)
                o.sampler.top_k = (int32_t)number(a, v);
            else if (strcmp(a, "--top-p") == 0)
                o.sampler.top_p = (float)number(a, v);
            else if (strcmp(a, "--min-p") == 0)
                o.sampler.min_p = (float)number(a, v);
            else if (strcmp(a, "--seed") == 0)
                o.sampler.seed = (uint32_t)number(a, v);
            else if (strcmp(a, "--ctx") == 0)
                o.setup.n_ctx = (uint32_t)number(a, v);
            else if (strcmp(a, "--threads") == 0)
                o.setup.n_threads = (uint32_t)number(a, v);
            else if (strcmp(a, "--stop") == 0 && o.answer.n_stop < MAX_STOP)
                o.stop[o.answer.n_stop++] = v;
            else
                v = NULL;
            if (!v) {
                fprintf(stderr, "embed: `%s` is unknown, or lacks its value\n", a);
                exit(2);
            }
            i++;
        }
    }
    if (n_place != 3) {
        fprintf(stderr, "usage: embed MODEL BUDGET_MIB [options] PROMPT\n");
        exit(2);
    }
    o.model = place[0];
    o.setup.memory = (uint64_t)(number("BUDGET_MIB", place[1]) * (double)MIB);
    o.prompt = place[2];
    return o;
}

#ifdef _WIN32

/* The system calls this in a thread of its own. */
static emoe_session *volatile asked;
static BOOL WINAPI on_interrupt(DWORD event) {
    (void)event;
    if (asked) emoe_session_cancel(asked);
    return TRUE;
}

static void prepare_interrupt(void) { SetConsoleOutputCP(CP_UTF8); }
static void begin_interrupt(emoe_session *session) {
    asked = session;
    SetConsoleCtrlHandler(on_interrupt, TRUE);
}
static void end_interrupt(void) { SetConsoleCtrlHandler(on_interrupt, FALSE); }

#else

/* emoe_session_cancel may be called from any thread but from no signal handler: a thread waits for the signal. All
 * others have it blocked, since they inherit the mask of main. */
static void *wait_for_interrupt(void *session) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    int signal_number;
    while (sigwait(&set, &signal_number) == 0) emoe_session_cancel(session);
    return NULL;
}

static void prepare_interrupt(void) { /* before the library makes threads */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}
static pthread_t interrupt;
static int waits;
static void begin_interrupt(emoe_session *session) {
    waits = pthread_create(&interrupt, NULL, wait_for_interrupt, session) == 0;
}
static void end_interrupt(void) {
    if (!waits) return;
    pthread_cancel(interrupt);
    pthread_join(interrupt, NULL);
}

#endif

static int fail(const char *what, const emoe_error *err) {
    fprintf(stderr, "embed: %s: %s\n", what, err->message);
    return 1;
}

static void tell(const emoe_session *session) {
    emoe_stats s = {.struct_size = sizeof s};
    emoe_plan p = {.struct_size = sizeof p};
    if (emoe_engine_get_stats(emoe_session_engine(session), &s, NULL) != EMOE_OK) return;
    if (emoe_session_get_plan(session, &p, NULL) != EMOE_OK) return;
    double const decode_s = (double)s.decode_ns / 1e9, prefill_s = (double)s.prefill_ns / 1e9;
    double const uses = (double)(s.n_hit + s.n_miss);
    fprintf(stderr, "prompt %" PRIu64 " tokens in %.2f s, answer %" PRIu64 " tokens at %.1f tok/s\n", s.n_prefill,
            prefill_s, s.n_decode, decode_s > 0 ? (double)s.n_decode / decode_s : 0.0);
    fprintf(stderr,
            "experts: %u of %" PRIu64 " fit, %.0f %% of uses cached, %" PRIu64 " MiB read, budget %" PRIu64 " MiB\n",
            s.n_slot, p.n_expert_total, uses > 0 ? 100 * (double)s.n_hit / uses : 0.0, s.read_bytes / MIB,
            p.budget_bytes / MIB);
}

static void print_tokens(const emoe_session *session) {
    uint64_t const n = emoe_session_tokens(session, NULL, 0);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens + 1);
    if (!tokens) return;
    emoe_session_tokens(session, tokens, n);
    fprintf(stderr, "tokens:");
    for (uint64_t i = 0; i < n; i++) fprintf(stderr, " %" PRId32, tokens[i]);
    fprintf(stderr, "\n");
    free(tokens);
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    o.answer.stop = o.stop;
    o.answer.sampler = &o.sampler;

    prepare_interrupt();

    emoe_error err = {{0}};
    emoe_plan plan = {.struct_size = sizeof plan};
    emoe_session *session = NULL;
    emoe_status status = emoe_session_open(o.model, o.cache, &o.setup, &session, &plan, &err);
    if (status == EMOE_ERR_MEMORY && plan.smallest_bytes != 0)
        fprintf(stderr, "embed: the smallest budget is %" PRIu64 " MiB\n", (plan.smallest_bytes + MIB - 1) / MIB);
    if (status != EMOE_OK) return fail("cannot open the model", &err);

    begin_interrupt(session);
    if (o.raw) {
        status = emoe_session_prompt(session, o.prompt, strlen(o.prompt), &o.answer, &err);
    } else {
        emoe_message const messages[2] = {{"system", o.system}, {"user", o.prompt}};
        uint32_t const first = o.system ? 0 : 1;
        status = emoe_session_chat(session, messages + first, 2 - first, o.chat_template, &o.answer, &err);
    }
    while (status == EMOE_OK) {
        const char *text;
        uint64_t n;
        status = emoe_session_next(session, &text, &n, &err);
        if (status != EMOE_OK || !text) break;
        fwrite(text, 1, (size_t)n, stdout);
        fflush(stdout);
    }
    printf("\n");
    int code = 0;
    if (status == EMOE_ERR_CANCELLED) {
        fprintf(stderr, "embed: cancelled\n");
        code = 130;
    } else if (status != EMOE_OK) {
        code = fail("the answer failed", &err);
    }
    tell(session);
    if (o.tokens) print_tokens(session);
    end_interrupt(); /* no call may reach a session that is closed */
    emoe_session_close(session);
    return code;
}
