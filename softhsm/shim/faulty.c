/* A PKCS#11 module that misbehaves on demand: it hands every call on to a real module, and a control file that
 * tests map into memory says which calls fail, hang, crash, lie, or are merely counted.
 *
 *   HSM_SHIM_MODULE   path of the real module
 *   HSM_SHIM_CONTROL  path of the control file (struct control, written by softhsm/shim/control.py)
 *
 * The function list of PKCS#11 v2.40 is taken as an array of pointers in the order of the standard (section 3.6,
 * "CK_FUNCTION_LIST"), so that no header is needed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long rv_t;
typedef unsigned long handle_t;

enum { FUNCTIONS = 68, REFUSED = 8, TEMPLATE = 64 };
enum place {
    INITIALIZE = 0,
    GET_TOKEN_INFO = 6,
    OPEN_SESSION = 12,
    LOGIN = 18,
    SIGN_INIT = 42,
    SIGN = 43,
    GENERATE_KEY_PAIR = 59
};
enum fault { NONE, FAIL, DELAY, HANG, CRASH, CORRUPT, OTHER_KEY, FAIL_AFTER, REFUSE, IGNORE };

struct function_list {
    unsigned char version[2];
    void *call[FUNCTIONS];
};

/* One rule for each function that can misbehave. `skip` calls pass before `times` calls are hit (0: all). */
struct rule {
    _Atomic uint32_t fault;
    _Atomic uint32_t code;
    _Atomic uint32_t milliseconds;
    _Atomic uint32_t skip;
    _Atomic uint32_t times;
    _Atomic uint32_t hit;
    _Atomic uint64_t calls;
    _Atomic uint64_t successes;
};

enum slot { RULE_INITIALIZE, RULE_OPEN_SESSION, RULE_LOGIN, RULE_SIGN_INIT, RULE_SIGN, RULE_TOKEN_INFO,
            RULE_GENERATE_KEY_PAIR, RULES };

struct control {
    char magic[8];
    struct rule rule[RULES];
    char serial[16]; /* shown instead of the token's own when not empty */
    uint32_t refused[REFUSED]; /* attributes (0: none) of a new pair's templates that REFUSE and IGNORE mean */
};

struct attribute { /* CK_ATTRIBUTE */
    unsigned long type;
    void *value;
    unsigned long length;
};

static struct function_list faulty;
static struct function_list *real;
static struct control *control;
static handle_t seen[256];
static unsigned seen_count;

static void die(const char *what) {
    fprintf(stderr, "faulty PKCS#11 module: %s\n", what);
    abort();
}

static void pause_for(uint32_t milliseconds) {
    struct timespec left = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000L};
    while (nanosleep(&left, &left) != 0) {
    }
}

/* Counts the call; says which fault hits it. Delays, hangs and crashes happen here. */
static enum fault strike(struct rule *rule) {
    atomic_fetch_add(&rule->calls, 1);
    enum fault fault = atomic_load(&rule->fault);
    if (fault == NONE) return NONE;
    if (atomic_load(&rule->skip) > 0) {
        atomic_fetch_sub(&rule->skip, 1);
        return NONE;
    }
    uint32_t times = atomic_load(&rule->times);
    if (times > 0 && atomic_fetch_add(&rule->hit, 1) >= times) return NONE;
    switch (fault) {
    case DELAY:
        pause_for(atomic_load(&rule->milliseconds));
        return NONE;
    case HANG:
        for (;;) pause_for(60000);
    case CRASH:
        raise(SIGSEGV);
        abort();
    default:
        return fault;
    }
}

static rv_t settle(struct rule *rule, enum fault fault, rv_t rv) {
    if (fault == FAIL_AFTER) return atomic_load(&rule->code);
    if (rv == 0) atomic_fetch_add(&rule->successes, 1);
    return rv;
}

static rv_t faulty_initialize(void *arguments) {
    struct rule *rule = &control->rule[RULE_INITIALIZE];
    enum fault fault = strike(rule);
    if (fault == FAIL) return atomic_load(&rule->code);
    return settle(rule, fault, ((rv_t(*)(void *))real->call[INITIALIZE])(arguments));
}

static rv_t faulty_open_session(handle_t slot, unsigned long flags, void *application, void *notify, handle_t *session) {
    struct rule *rule = &control->rule[RULE_OPEN_SESSION];
    enum fault fault = strike(rule);
    if (fault == FAIL) return atomic_load(&rule->code);
    rv_t (*call)(handle_t, unsigned long, void *, void *, handle_t *) = real->call[OPEN_SESSION];
    return settle(rule, fault, call(slot, flags, application, notify, session));
}

static rv_t faulty_login(handle_t session, unsigned long user, unsigned char *pin, unsigned long length) {
    struct rule *rule = &control->rule[RULE_LOGIN];
    enum fault fault = strike(rule);
    if (fault == FAIL) return atomic_load(&rule->code);
    rv_t (*call)(handle_t, unsigned long, unsigned char *, unsigned long) = real->call[LOGIN];
    return settle(rule, fault, call(session, user, pin, length));
}

static rv_t faulty_get_token_info(handle_t slot, unsigned char *info) {
    struct rule *rule = &control->rule[RULE_TOKEN_INFO];
    enum fault fault = strike(rule);
    if (fault == FAIL) return atomic_load(&rule->code);
    rv_t rv = ((rv_t(*)(handle_t, unsigned char *))real->call[GET_TOKEN_INFO])(slot, info);
    /* CK_TOKEN_INFO: label 32, manufacturer 32, model 16, serial number 16 bytes */
    if (rv == 0 && control->serial[0] != 0) memcpy(info + 80, control->serial, 16);
    return settle(rule, fault, rv);
}

/* Another key that the caller has signed with before: what a stale handle can come to mean. */
static handle_t other_key(handle_t key) {
    for (unsigned i = 0; i < seen_count; i++)
        if (seen[i] != key) return seen[i];
    return key;
}

static rv_t faulty_sign_init(handle_t session, void *mechanism, handle_t key) {
    struct rule *rule = &control->rule[RULE_SIGN_INIT];
    enum fault fault = strike(rule);
    if (fault == FAIL) return atomic_load(&rule->code);
    unsigned i = 0;
    while (i < seen_count && seen[i] != key) i++;
    if (i == seen_count && seen_count < sizeof seen / sizeof *seen) seen[seen_count++] = key;
    if (fault == OTHER_KEY) key = other_key(key);
    rv_t (*call)(handle_t, void *, handle_t) = real->call[SIGN_INIT];
    return settle(rule, fault, call(session, mechanism, key));
}

static rv_t faulty_sign(handle_t session, unsigned char *data, unsigned long length, unsigned char *signature,
                        unsigned long *signature_length) {
    rv_t (*call)(handle_t, unsigned char *, unsigned long, unsigned char *, unsigned long *) = real->call[SIGN];
    if (signature == NULL) return call(session, data, length, signature, signature_length); /* asks for the length only */
    struct rule *rule = &control->rule[RULE_SIGN];
    enum fault fault = strike(rule);
    if (fault == FAIL) { /* a failed C_Sign ends the operation (section 5.13.2): end it, and let nobody see the result */
        unsigned char unseen[1024];
        unsigned long room = sizeof unseen;
        call(session, data, length, unseen, &room);
        return atomic_load(&rule->code);
    }
    rv_t rv = call(session, data, length, signature, signature_length);
    if (rv == 0 && fault == CORRUPT) signature[*signature_length / 2] ^= 1;
    return settle(rule, fault, rv);
}

static int is_refused(unsigned long type) {
    for (unsigned j = 0; j < REFUSED; j++)
        if (control->refused[j] != 0 && control->refused[j] == type) return 1;
    return 0;
}

/* The attributes that are not refused; returns how many they are. */
static unsigned long allowed(const struct attribute *attributes, unsigned long count, struct attribute *kept) {
    unsigned long many = 0;
    if (count > TEMPLATE) die("a template has too many attributes");
    for (unsigned long i = 0; i < count; i++)
        if (!is_refused(attributes[i].type)) kept[many++] = attributes[i];
    return many;
}

static rv_t faulty_generate_key_pair(handle_t session, void *mechanism, struct attribute *public_half,
                                     unsigned long public_count, struct attribute *private_half,
                                     unsigned long private_count, handle_t *public_key, handle_t *private_key) {
    struct rule *rule = &control->rule[RULE_GENERATE_KEY_PAIR];
    enum fault fault = strike(rule);
    if (fault == FAIL) return atomic_load(&rule->code);
    struct attribute public_kept[TEMPLATE], private_kept[TEMPLATE];
    unsigned long public_many = allowed(public_half, public_count, public_kept);
    unsigned long private_many = allowed(private_half, private_count, private_kept);
    if (fault == REFUSE && (public_many < public_count || private_many < private_count))
        return atomic_load(&rule->code);
    if (fault == IGNORE) {
        public_half = public_kept, public_count = public_many;
        private_half = private_kept, private_count = private_many;
    }
    rv_t (*call)(handle_t, void *, struct attribute *, unsigned long, struct attribute *, unsigned long, handle_t *,
                 handle_t *) = real->call[GENERATE_KEY_PAIR];
    return settle(rule, fault, call(session, mechanism, public_half, public_count, private_half, private_count,
                                    public_key, private_key));
}

static void prepare(void) {
    const char *module = getenv("HSM_SHIM_MODULE"), *path = getenv("HSM_SHIM_CONTROL");
    if (module == NULL || path == NULL) die("HSM_SHIM_MODULE and HSM_SHIM_CONTROL must be set");
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) die("the control file cannot be opened");
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (control == MAP_FAILED || memcmp(control->magic, "HSMSHIM1", 8) != 0) die("the control file is not one");
    void *library = dlopen(module, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) die(dlerror());
    rv_t (*get)(struct function_list **) = dlsym(library, "C_GetFunctionList");
    if (get == NULL || get(&real) != 0) die("the real module has no function list");
    faulty = *real;
    faulty.call[INITIALIZE] = faulty_initialize;
    faulty.call[GET_TOKEN_INFO] = faulty_get_token_info;
    faulty.call[OPEN_SESSION] = faulty_open_session;
    faulty.call[LOGIN] = faulty_login;
    faulty.call[SIGN_INIT] = faulty_sign_init;
    faulty.call[SIGN] = faulty_sign;
    faulty.call[GENERATE_KEY_PAIR] = faulty_generate_key_pair;
}

rv_t C_GetFunctionList(struct function_list **list) {
    if (real == NULL) prepare();
    faulty.call[3] = C_GetFunctionList;
    *list = &faulty;
    return 0;
}
