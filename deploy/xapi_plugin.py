"""Tell twistd of the daemon; installed as twisted/plugins/xapi_plugin.py."""

from twisted.application.service import ServiceMaker

xapi = ServiceMaker("xapi", "xapi.process.twistd", "A XenAPI toolstack that needs no Xen host.", "xapi")
