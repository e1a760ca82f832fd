"""`ray start` without the Ray Client server, which anybody with a route to this host could otherwise talk to; the
command has no option for that. Run as a script by `ray_head`."""

from ray.scripts import scripts

if __name__ == "__main__":
    scripts.get_ray_client_dependency_error = lambda: "a head of wattray serves no Ray Client"
    scripts.main()
