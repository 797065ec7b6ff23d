"""The REST API: one file a resource; a route makes one store call and at most one hint."""
