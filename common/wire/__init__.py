"""Messages between coordinator and sites, independent of the transport that carries them."""
