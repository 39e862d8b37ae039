/* Addresses that the toolstack gives (VIF.configure_ipv4): xenserver/device/vif/<n>/static-ip-setting.
 *
 * As the agents of XenServer do it: `enabled` is taken away once it was followed, and an error code is left. */
#include "net.h"

static struct watch watch;

static void apply(uint32_t number, const char *path, bool fixed)
{
    struct station *station = &stations[number];
    char text[40];
    uint32_t address = 0, gateway = 0;
    uint64_t prefix = 32;
    bool okay = true;
    if (fixed) {
        okay = store_get(text, sizeof text, "%s/address", path) > 0 && parse_address(text, &address) && address;
        const char *slash = text;
        while (*slash && *slash != '/')
            slash++;
        okay = okay && (!*slash || (parse_number(slash + 1, &prefix) && prefix <= 32));
        if (okay && store_get(text, sizeof text, "%s/gateway", path) > 0)
            okay = parse_address(text, &gateway);
    }
    if (okay && fixed) {
        dhcp_stop(station);
        station->fixed = true;
        ip_configure(station, address, prefix ? BROADCAST << (32 - prefix) : 0, gateway);
    } else if (okay && station->fixed) {
        dhcp_start(station);
    }
    store_put(okay ? "0" : "1", "%s/error-code", path);
    store_put(okay ? "" : "the setting cannot be used", "%s/error-msg", path);
}

static void changed(struct watch *watch, const char *unused)
{
    (void)watch, (void)unused;
    settings_look();
}

/* What is for a NIC that is not connected yet waits until it is. */
void settings_look(void)
{
    for (uint32_t number = 0; number < NICS; number++) {
        char path[64], enabled[72];
        if (!nics[number].device || !nics[number].connected)
            continue;
        format(path, sizeof path, "xenserver/device/vif/%u/static-ip-setting", number);
        format(enabled, sizeof enabled, "%s/enabled", path);
        uint64_t value = store_get_number(2, "%s", enabled);
        if (value <= 1 && store_remove(enabled)) /* else it would be followed again and again */
            apply(number, path, value == 1);
    }
}

void settings_start(void)
{
    watch = (struct watch){.path = "xenserver/device/vif", .changed = changed};
    watch_add(&watch);
}
